"""CALM: golden numbers, the equations by slow loops, leave-one-out against refits, streams, and what is refused."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from helpers.calm import CALM, WEIGHTINGS, class_weights, credit

GOLDEN = np.load(Path(__file__).parent / "golden" / "calm.npz")
SETTINGS = json.loads(str(GOLDEN["configs"]))
X, y, X_VAL, Y_VAL, X_TEST, Y_TEST = (
    GOLDEN[f"{kind}_{part}"] for part in ("support", "val", "test") for kind in ("X", "y")
)


def own_class(posterior, labels):
    return posterior[np.arange(len(labels)), :, labels]


@pytest.mark.parametrize("i", range(len(SETTINGS)), ids=lambda i: "-".join(map(str, SETTINGS[i].values())))
def test_golden_numbers(i):
    calm = CALM(**SETTINGS[i]).fit(X, y, X_VAL, Y_VAL)
    np.testing.assert_allclose(calm.prototypes_, GOLDEN["prototypes"], atol=1e-5)
    np.testing.assert_allclose(calm.reliability_, GOLDEN[f"reliability_{i}"], atol=1e-5)
    np.testing.assert_allclose(calm.weights_, GOLDEN[f"weights_{i}"], atol=1e-5)
    np.testing.assert_allclose(calm.votes(X_TEST), GOLDEN[f"scores_{i}"], atol=1e-5)
    assert np.array_equal(calm.predict(X_TEST), GOLDEN[f"pred_{i}"])


def test_golden_settings_cover_all():
    assert {setting["weighting"] for setting in SETTINGS} == set(WEIGHTINGS)
    assert {setting["top_k"] for setting in SETTINGS} == {None, 7}


def test_the_equations_one_by_one():
    calm = CALM(tau=0.3).fit(X, y, X_VAL, Y_VAL)
    x, (n_heads, n_classes) = X_TEST[0].astype(float), calm.weights_.shape
    vote = np.zeros(n_classes)
    for k in range(n_heads):
        means = [X[y == c][:, k].astype(float).mean(0) for c in range(n_classes)]
        sure = [np.exp(x[k] @ m / np.linalg.norm(x[k]) / np.linalg.norm(m) / 0.3) for m in means]
        np.testing.assert_allclose(calm.posterior(X_TEST)[0, k], np.array(sure) / sum(sure), atol=1e-6)
        for c in range(n_classes):
            vote[c] += calm.weights_[k, c] * sure[c] / sum(sure)
    np.testing.assert_allclose(calm.votes(X_TEST)[0], vote, atol=1e-6)
    np.testing.assert_allclose(calm.predict_proba(X_TEST)[0], vote / vote.sum(), atol=1e-6)


def test_credit_by_hand():
    posterior = np.array([[[0.7, 0.2, 0.1]], [[0.5, 0.3, 0.2]], [[0.5, 0.4, 0.1]]])  # (n, 1, C)
    own = np.array([0, 1, 1])
    by_hand = {
        "prob_softmax": [0.7, 0.3, 0.4],
        "margin_softmax": [0.5, -0.2, -0.1],
        "margin_clamped": [0.5, 0, 0],
        "brier_softmax": [1.4 - 0.54, 0.6 - 0.38, 0.8 - 0.42],
    }
    for weighting, values in by_hand.items():
        np.testing.assert_allclose(credit(posterior, own, weighting)[:, 0], values, atol=1e-12)


def test_weights_by_hand():
    reliability = np.array([[0.2, 0.0], [0.6, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(
        class_weights(reliability, "margin_clamped"), np.transpose([[1 / 4, 3 / 4, 0], [1 / 3] * 3])
    )
    np.testing.assert_allclose(class_weights(reliability, "margin_clamped", tau_w=0.5)[:, 0], [0.1, 0.9, 0])
    np.testing.assert_allclose(
        class_weights(reliability, "margin_clamped", top_k=1), np.transpose([[0, 1, 0], [1 / 3] * 3])
    )
    e = np.exp([0.4, 1.2, 0.0])
    np.testing.assert_allclose(class_weights(reliability, "prob_softmax", tau_w=0.5)[:, 0], e / e.sum())
    np.testing.assert_allclose(
        class_weights(reliability, "prob_softmax", tau_w=0.5, top_k=2)[:, 0], [*e[:2] / e[:2].sum(), 0]
    )


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_leave_one_out_equals_a_refit_for_each_example(weighting):
    calm = CALM(weighting=weighting).fit(X, y)
    earned = np.zeros((len(X), X.shape[1]))
    for i in range(len(X)):
        others = np.arange(len(X)) != i
        refit = CALM().partial_fit(X[others], y[others])
        earned[i] = credit(refit.posterior(X[i : i + 1]), y[i : i + 1], weighting)[0]
    refits = np.stack([earned[y == c].mean(0) for c in range(5)], axis=1)
    np.testing.assert_allclose(calm.reliability_, refits, atol=1e-7)
    assert not np.allclose(calm.reliability_, CALM(weighting=weighting).fit(X, y, X, y).reliability_, atol=0.01)


def test_leave_one_out_is_not_fooled_by_noise():
    """Labels that mean nothing: no margin is to be had, and only those who judge themselves find one."""
    rng = np.random.default_rng(0)
    noise, labels = rng.standard_normal((60, 40, 16)), np.arange(60) % 3
    honest = CALM(weighting="margin_softmax").fit(noise, labels).reliability_.mean()
    in_sample = CALM(weighting="margin_softmax").fit(noise, labels, noise, labels).reliability_.mean()
    assert honest < 0 < 0.1 < in_sample


def test_reliability_tells_who_knows_what():
    """Head 0 knows class a, head 1 class b, head 2 nothing: each is heard where it knows something."""
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b", "c"], 30)
    vectors = rng.standard_normal((90, 3, 8))
    vectors[labels == "a", 0, 0] += 20
    vectors[labels == "b", 1, 0] += 20
    weights = CALM().fit(vectors, labels).weights_
    assert weights[0, 0] > 0.5 and weights[1, 1] > 0.5


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_weights_of_a_class_sum_to_one(weighting):
    for top_k in (None, 1, 7, 24):
        weights = CALM(weighting=weighting, top_k=top_k).fit(X, y).weights_
        np.testing.assert_allclose(weights.sum(0), 1)
        assert ((weights > 0).sum(0) <= (top_k or 24)).all()


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("tau", [1e-4, 5.0])
@pytest.mark.parametrize("tau_w", [0.001, 10.0])
def test_extreme_temperatures_stay_finite(weighting, tau, tau_w):
    calm = CALM(tau=tau, tau_w=tau_w, weighting=weighting).fit(X, y)
    np.testing.assert_allclose(calm.weights_.sum(0), 1)
    np.testing.assert_allclose(calm.predict_proba(X_TEST).sum(1), 1)


def test_a_cold_vote_is_that_of_the_best_head():
    calm = CALM(tau_w=0.001, weighting="prob_softmax").fit(X, y)
    np.testing.assert_allclose(calm.weights_.max(0), 1, atol=1e-3)
    assert (calm.weights_.argmax(0) == calm.reliability_.argmax(0)).all()
    hot = CALM(tau_w=1e6, weighting="prob_softmax").fit(X, y)
    np.testing.assert_allclose(hot.weights_, 1 / 24, atol=1e-5)


def test_shrinkage_draws_to_the_mean():
    free, drawn, flat = (CALM(shrinkage=a).fit(X, y).reliability_ for a in (0, 8, 1e9))
    np.testing.assert_allclose(drawn, (free + free.mean()) / 2)  # 8 examples a class against the worth of 8
    np.testing.assert_allclose(flat, free.mean(), atol=1e-6)


def test_doubled_heads_share_the_weight():
    once, twice = CALM().fit(X, y), CALM().fit(np.concatenate([X, X], axis=1), y)
    np.testing.assert_allclose(twice.weights_, np.concatenate([once.weights_, once.weights_]) / 2)
    np.testing.assert_allclose(twice.votes(np.concatenate([X_TEST, X_TEST], axis=1)), once.votes(X_TEST))


def test_doubled_examples_judge_each_other():
    """Twice the same examples: nothing new in-sample, but no longer left out, since the twin stays in the mean."""
    X2, y2 = np.concatenate([X, X]), np.concatenate([y, y])
    in_sample, left_out = CALM().fit(X, y, X, y).reliability_, CALM().fit(X, y).reliability_
    np.testing.assert_allclose(CALM().fit(X2, y2, X2, y2).reliability_, in_sample, atol=1e-6)
    assert left_out.mean() < CALM().fit(X2, y2).reliability_.mean() < in_sample.mean()


# ------------------------------------------------------------------------------------------------------------- streams
def batches(X, y, size=7):
    order = np.random.default_rng(0).permutation(len(X))  # batches that lack classes
    return [(X[order[i : i + size]], y[order[i : i + size]]) for i in range(0, len(X), size)]


@pytest.mark.parametrize("size", [1, 7])
def test_a_stream_equals_fit(size):
    names = np.array(["bell", "cow", "dog", "rain", "wind"])
    stream, whole = CALM(shrinkage=2.0), CALM(shrinkage=2.0).fit(X, names[y])
    for part, labels in batches(X, names[y], size):
        stream.partial_fit(part, labels, classes=names)
    with pytest.raises(NotFittedError):
        stream.predict(X_TEST)
    for part, labels in batches(X, names[y], size):
        stream.partial_validate(part, labels, leave_one_out=True)
    for name in ("prototypes_", "reliability_", "weights_"):
        np.testing.assert_allclose(getattr(stream, name), getattr(whole, name), atol=1e-9)
    assert np.array_equal(stream.predict(X_TEST), whole.predict(X_TEST))


def test_a_stream_goes_on_after_fit():
    calm = CALM().fit(X[:20], y[:20]).partial_fit(X[20:], y[20:])
    with pytest.raises(NotFittedError):  # other means: the old reliability is not theirs
        calm.predict(X_TEST)
    calm.partial_validate(X_VAL, Y_VAL)
    whole = CALM().fit(X, y, X_VAL, Y_VAL)
    np.testing.assert_allclose(calm.votes(X_TEST), whole.votes(X_TEST), atol=1e-9)


def test_memory_does_not_grow_with_the_stream():
    calm, sizes = CALM(), []
    for _ in range(3):
        calm.partial_fit(X, y)
        calm.partial_validate(X, y)
        sizes.append(len(pickle.dumps(calm)))
    assert sizes[0] == sizes[1] == sizes[2]


def test_fit_takes_a_memory_mapped_file(tmp_path):
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    assert np.array_equal(CALM().fit(mapped, y).votes(X_TEST), CALM().fit(X, y).votes(X_TEST))


# ------------------------------------------------------------------------------------------------------------- refused
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"tau": 0}, "tau must be"),
        ({"tau": -0.07}, "tau must be"),
        ({"tau": float("nan")}, "tau must be"),
        ({"tau_w": 0}, "tau_w must be"),
        *(({"top_k": wrong}, "top_k must be a whole number in 1..24") for wrong in (25, 0, 2.5, "5", True)),
        ({"tau": None}, "tau must be a finite number above 0, got None"),
        ({"tau_w": "1"}, "tau_w must be a finite number above 0, got '1'"),
        ({"shrinkage": -1}, "shrinkage must be"),
        ({"weighting": "margin"}, "weighting must be one of"),
    ],
)
def test_refuses_settings(setting, said):
    with pytest.raises(ValueError, match=said):
        CALM(**setting).fit(X, y)


def test_one_example_of_a_class_leaves_nothing_to_judge_it_by():
    few = np.r_[0:4, 5:9, 9]  # one example of class 4 only
    assert np.bincount(y[few]).tolist() == [2, 2, 2, 2, 1]
    with pytest.raises(ValueError, match=r"class \[4\] has one example.*pass X_val"):
        CALM().fit(X[few], y[few])
    one_each = CALM().fit(X[:5], y[:5], X[:5], y[:5])  # in-sample, as at one shot in the paper's code
    assert (one_each.predict(X[:5]) == y[:5]).all()


def test_refuses_labels_that_do_not_meet():
    with pytest.raises(ValueError, match=r"labels \[7\] are not among the classes"):
        CALM().fit(X, y, X_VAL, np.where(Y_VAL == 3, 7, Y_VAL))
    with pytest.raises(ValueError, match=r"no validation example of \[3\]"):
        CALM().fit(X, y, X_VAL[Y_VAL != 3], Y_VAL[Y_VAL != 3])
    with pytest.raises(ValueError, match=r"labels \[5\] are not among the classes"):
        CALM().partial_fit(X, y).partial_fit(X, y + 1)
    with pytest.raises(ValueError, match=r"no example of \[9\] to make a class mean of"):
        CALM().partial_fit(X, y, classes=[*range(5), 9]).partial_validate(X_VAL, Y_VAL)
    with pytest.raises(ValueError, match="come together"):
        CALM().fit(X, y, X_val=X_VAL)


def test_refuses_validation_vectors_that_differ():
    with pytest.raises(ValueError, match="X has 23 heads"):
        CALM().fit(X, y, X_VAL[:, :23], Y_VAL)
    with pytest.raises(ValueError, match="X has 24 heads of 7"):
        CALM().partial_fit(X, y).partial_fit(X[..., :7], y)
    with pytest.raises(ValueError, match="inconsistent"):
        CALM().fit(X, y, X_VAL, Y_VAL[:-1])
    with pytest.raises(ValueError, match="NaN"):
        CALM().fit(X, y, np.where(X_VAL > 1, np.nan, X_VAL), Y_VAL)
    with pytest.raises(NotFittedError):
        CALM().partial_validate(X, y)
