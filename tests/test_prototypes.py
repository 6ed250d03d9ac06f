"""What holds for both classifiers of head vectors: invariances, scikit-learn's habits, and what they refuse."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from helpers import prototypes
from helpers.calm import CALM
from helpers.sav import SAV

N, LAYERS, HEADS, DIM = 36, 3, 4, 5


@pytest.fixture(scope="module")
def data():
    """Three classes; each head sees a shifted mean, some more clearly than others. (n, layers, heads, dim)."""
    rng = np.random.default_rng(0)
    y = np.arange(N) % 3
    means = rng.standard_normal((3, LAYERS, HEADS, DIM)) * rng.uniform(0.2, 1.2, (LAYERS, HEADS, 1))
    return means[y] + rng.standard_normal((N, LAYERS, HEADS, DIM)), y


@pytest.fixture(params=[SAV(n_heads=5), CALM(), CALM(weighting="brier_softmax", top_k=4)], ids=["sav", "calm", "brier"])
def classifier(request):
    return clone(request.param)


def fitted(classifier, data, change=lambda X: X, labels=lambda y: y):
    """Probabilities for the last dozen examples after a fit on the others, both with their vectors changed."""
    X, y = data
    return clone(classifier).fit(change(X[:24]), labels(y[:24])).predict_proba(change(X[24:]))


def test_learns_and_is_sure_of_what_it_says(classifier, data):
    X, y = data
    classifier.fit(X[:24], y[:24])
    shares = classifier.predict_proba(X[24:])
    assert classifier.score(X[24:], y[24:]) > 0.8
    assert shares.shape == (12, 3) and (shares >= 0).all()
    np.testing.assert_allclose(shares.sum(1), 1)
    top = shares.max(1)
    assert (shares[np.arange(12), classifier.predict(X[24:])] == top).all()


def test_layers_by_heads_or_all_heads_in_a_row(classifier, data):
    flat = fitted(classifier, data, lambda X: X.reshape(len(X), -1, DIM))
    assert np.array_equal(flat, fitted(classifier, data))
    np.testing.assert_allclose(fitted(classifier, data, torch.from_numpy), flat)
    np.testing.assert_allclose(fitted(classifier, data, lambda X: X.astype(np.float32)), flat, atol=1e-5)


def test_order_of_heads_does_not_matter(classifier, data):
    order = np.random.default_rng(1).permutation(LAYERS)
    np.testing.assert_allclose(fitted(classifier, data, lambda X: X[:, order]), fitted(classifier, data))


def test_length_of_vectors_does_not_matter_but_between_examples(classifier, data):
    loud = np.random.default_rng(1).uniform(0.01, 100, (LAYERS, HEADS, 1))
    np.testing.assert_allclose(fitted(classifier, data, lambda X: loud * X), fitted(classifier, data))


def test_axes_of_a_head_do_not_matter(classifier, data):
    turn, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((HEADS, DIM, DIM)))
    turned = fitted(classifier, data, lambda X: np.einsum("nlhd,hde->nlhe", X, turn))
    np.testing.assert_allclose(turned, fitted(classifier, data))


def test_order_of_examples_does_not_matter(classifier, data):
    X, y = data
    order = np.random.default_rng(1).permutation(24)
    again = clone(classifier).fit(X[order], y[order]).predict_proba(X[24:])
    np.testing.assert_allclose(again, fitted(classifier, data))


def test_names_of_classes_do_not_matter(classifier, data):
    X, y = data
    names = np.array(["rain", "dog bark", "bell"])  # sorted they stand the other way round
    named = clone(classifier).fit(X[:24], names[y[:24]])
    assert named.classes_.tolist() == ["bell", "dog bark", "rain"]
    assert named.predict(X[24:]).tolist() == names[classifier.fit(X[:24], y[:24]).predict(X[24:])].tolist()
    np.testing.assert_allclose(named.predict_proba(X[24:])[:, ::-1], fitted(classifier, data))
    assert named.fit(X[:24], names[y[:24]].tolist()).score(X[24:], names[y[24:]].tolist()) > 0.8


def test_silent_heads_do_no_harm(classifier, data):
    X, y = data
    mute = np.concatenate([X, np.zeros_like(X[:, :1])], axis=1)
    shares = clone(classifier).fit(mute[:24], y[:24]).predict_proba(mute[24:])
    assert np.isfinite(shares).all()
    assert (clone(classifier).fit(X[:24], y[:24]).predict(X[24:]) == shares.argmax(1)).mean() > 0.8


def test_blocks_do_not_show(classifier, data, monkeypatch):
    whole, size = fitted(classifier, data), []

    def small(n, class_means):
        slices = list(prototypes.blocks(n, class_means, numbers=5 * LAYERS * HEADS * DIM))
        size.append(slices[0].stop)
        return slices

    for module in ("sav", "calm"):
        monkeypatch.setattr(f"helpers.{module}.blocks", small)
    np.testing.assert_allclose(fitted(classifier, data), whole)
    assert size and set(size) == {5}


# -------------------------------------------------------------------------------------------------------- scikit-learn
def test_clone_and_parameters(classifier):
    classifier.set_params(**{"n_heads": 3} if isinstance(classifier, SAV) else {"tau": 0.5})
    copy = clone(classifier)
    assert copy is not classifier and copy.get_params() == classifier.get_params()


def test_refit_forgets(classifier, data):
    X, y = data
    once = clone(classifier).fit(X[:24], y[:24])
    twice = clone(classifier).fit(X[24:, :2] ** 3, 7 - y[24:]).fit(X[:24], y[:24])
    assert np.array_equal(twice.predict_proba(X[24:]), once.predict_proba(X[24:]))


def test_a_pickle_answers_the_same(classifier, data):
    X, y = data
    classifier.fit(X[:24], y[:24])
    assert np.array_equal(
        pickle.loads(pickle.dumps(classifier)).predict_proba(X[24:]), classifier.predict_proba(X[24:])
    )


def test_cross_validation(classifier, data):
    X, y = data
    assert cross_val_score(classifier, X, y, cv=4).mean() > 0.8
    assert cross_val_score(classifier, torch.from_numpy(X), y, cv=4).mean() > 0.8
    assert cross_val_score(classifier, X[y < 2], y[y < 2], cv=4, scoring="roc_auc").mean() > 0.8


def test_pipeline_and_grid_search(classifier, data):
    X, y = data
    upper = FunctionTransformer(lambda X: X[:, 1:])
    pipeline = make_pipeline(upper, classifier)
    assert pipeline.fit(X, y).score(X, y) == clone(classifier).fit(X[:, 1:], y).score(X[:, 1:], y)
    name = type(classifier).__name__.lower()
    grid = {"n_heads": [1, 5]} if name == "sav" else {"tau": [0.01, 0.07, 1.0], "top_k": [2, None]}
    search = GridSearchCV(pipeline, {f"{name}__{key}": values for key, values in grid.items()}, cv=3).fit(X, y)
    assert search.best_score_ > 0.8
    assert set(search.best_params_) == {f"{name}__{key}" for key in grid}


# ------------------------------------------------------------------------------------------------------------- refused
def test_not_fitted(classifier, data):
    with pytest.raises(NotFittedError):
        classifier.predict(data[0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda X, y: (X, np.zeros(N)), "nothing to tell apart"),
        (lambda X, y: (np.where(X == X[3, 1, 2, 0], np.nan, X), y), "NaN"),
        (lambda X, y: (X / (X != X[3, 1, 2, 0]), y), "infinity"),
        (lambda X, y: (X, y[:-1]), "inconsistent numbers of samples"),
        (lambda X, y: (X[:, 0, 0], y), "must be .n, heads, dim"),
        (lambda X, y: (X[:0], y[:0]), "0 sample"),
        (lambda X, y: (X, np.stack([y, y])), "1d array"),
    ],
)
def test_refuses_what_cannot_be_learned(classifier, data, change, said):
    with np.errstate(divide="ignore"):
        X, y = change(*data)
    with pytest.raises(ValueError, match=said):
        classifier.fit(X, y)


def test_refuses_heads_that_differ(classifier, data):
    X, y = data
    classifier.fit(X, y)
    with pytest.raises(ValueError, match="X has 8 heads of 5 numbers, the class means 12 of 5"):
        classifier.predict(X[:, :2])
    with pytest.raises(ValueError, match="X has 12 heads of 3 numbers, the class means 12 of 5"):
        classifier.predict_proba(X[..., :3])
