"""SAV: the published steps by a slow loop, golden numbers, and ties."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from helpers.sav import SAV

GOLDEN = np.load(Path(__file__).parent / "golden" / "calm.npz")
X, y, X_TEST, Y_TEST = (GOLDEN[name] for name in ("X_support", "y_support", "X_test", "y_test"))


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_golden_numbers():
    sav = SAV().fit(X, y)
    np.testing.assert_allclose(sav.prototypes_, GOLDEN["prototypes"], atol=1e-5)
    assert np.array_equal(sav.hits_, GOLDEN["sav_head_hits"])
    assert np.array_equal(sav.nearest(X_TEST), GOLDEN["sav_votes_test"])


@pytest.mark.parametrize("n_heads", [1, 7, 24])
def test_the_published_steps_one_by_one(n_heads):
    means = [[X[y == c][:, k].astype(float).mean(0) for k in range(24)] for c in range(5)]

    def vote(x, k):
        return max(range(5), key=lambda c: cosine(x[k].astype(float), means[c][k]))

    hits = [sum(vote(x, k) == label for x, label in zip(X, y, strict=True)) for k in range(24)]
    chosen = sorted(range(24), key=lambda k: -hits[k])[:n_heads]
    sav = SAV(n_heads).fit(X, y)
    assert sav.heads_.tolist() == chosen
    for x, answer, share in zip(X_TEST, sav.predict(X_TEST), sav.predict_proba(X_TEST), strict=True):
        votes = Counter(vote(x, k) for k in chosen)
        assert votes[answer] == max(votes.values())
        assert (share * n_heads).round(9).tolist() == [votes[c] for c in range(5)]


def test_of_two_classes_with_as_many_votes_the_better_heads_win():
    """Two heads, one of which confuses an example: where they disagree, the other is believed."""
    right, up = [1.0, 0.0], [0.0, 1.0]
    vectors = np.array([[right, right], [right, right], [up, up], [up, right], [up, up]])  # (n, K, D)
    sav = SAV(n_heads=2).fit(vectors, list("aabbb"))
    assert sav.hits_.tolist() == [5, 4] and sav.heads_.tolist() == [0, 1]
    disagree = np.array([[right, up], [up, right]])
    assert sav.predict_proba(disagree).tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert sav.predict(disagree).tolist() == ["a", "b"]
    assert SAV(n_heads=2).fit(vectors[:, ::-1], list("aabbb")).predict(disagree[:, ::-1]).tolist() == ["a", "b"]


def test_no_tie_break_outvotes_a_majority():
    """One perfect head for class 0 against two poor ones for class 1."""
    sav = SAV(n_heads=3)
    sav.classes_, sav.prototypes_ = np.array([0, 1]), np.eye(2)[:, None].repeat(3, axis=1)
    sav.hits_, sav.heads_ = np.array([1000, 1, 1]), np.arange(3)
    assert sav.predict(np.array([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])).tolist() == [1]


def test_one_example_a_class_is_enough():
    sav = SAV(n_heads=3).fit(X[:5], y[:5])
    assert set(sav.hits_) == {5}  # each is its own class mean
    assert (sav.predict(X[:5]) == y[:5]).all()


def test_doubled_examples_change_nothing():
    once, twice = SAV().fit(X, y), SAV().fit(np.concatenate([X, X]), np.concatenate([y, y]))
    assert np.array_equal(twice.hits_, 2 * once.hits_) and np.array_equal(twice.heads_, once.heads_)
    assert np.array_equal(twice.predict(X_TEST), once.predict(X_TEST))


@pytest.mark.parametrize("n_heads", [0, 25, -1])
def test_refuses_more_heads_than_there_are(n_heads):
    with pytest.raises(ValueError, match="n_heads must be a whole number in 1..24"):
        SAV(n_heads).fit(X, y)
