"""CALM: every head votes on every class, with a weight that says how well it knows that class.

CALM (arXiv 2602.07077). In SAV a head that knows dogs but takes rain for wind votes on rain as loudly as on dogs; here
each head earns a weight for each class. Taught in Part III. n examples, K heads, D numbers a head, C classes.
"""

from numbers import Real

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import softmax
from sklearn.utils.validation import check_is_fitted

from helpers.prototypes import (
    HeadClassifier,
    blocks,
    check_vectors,
    class_index,
    class_sums,
    cosines,
    is_count,
    labels,
    unit,
)

WEIGHTINGS = ("margin_clamped", "margin_softmax", "prob_softmax", "brier_softmax")


class CALM(HeadClassifier):
    """Vote of all heads, each weighted by its reliability on each class.

    X: (n, K, D), or (n, layers, heads, D) as from `head_vectors`. With m_kc the mean of head k's vectors h_k over the
    examples of class c:

    - posterior of a head: p_kc(x) = softmax_c(cos(h_k(x), m_kc) / tau)
    - reliability r_kc: the mean of `credit` over the validation examples of class c
    - weights w_kc: from r_kc by `class_weights`; those of a class sum to 1
    - prediction: argmax_c Σ_k w_kc p_kc(x)

    Parameters
    ----------
    tau : float
        Temperature of the posteriors: small ones make each head sure of its nearest class.
    weighting : {"margin_clamped", "margin_softmax", "prob_softmax", "brier_softmax"}
        What counts as reliable, and how that becomes a weight.
    tau_w : float
        Temperature of the weights: small ones leave the vote to the most reliable heads.
    top_k : int, optional
        Only the k most reliable heads vote on a class; by default all.
    shrinkage : float
        How many examples' worth each r_kc is drawn to r̄, the mean of all: (n_c r_kc + shrinkage r̄) / (n_c + shrinkage).

    Attributes
    ----------
    classes_ : (C,)
    prototypes_ : (C, K, D)
        Class means of each head, scaled to length 1.
    reliability_ : (K, C)
    weights_ : (K, C)
    """

    def __init__(self, tau=0.07, weighting="margin_clamped", tau_w=1.0, top_k=None, shrinkage=0.0):
        self.tau, self.weighting, self.tau_w, self.top_k, self.shrinkage = tau, weighting, tau_w, top_k, shrinkage

    def fit(self, X: ArrayLike, y: ArrayLike, X_val: ArrayLike | None = None, y_val: ArrayLike | None = None) -> "CALM":
        """Learn the class means from X and y (n,), the reliability from X_val and y_val.

        Without a validation set each example is judged by class means that it has no part in. X_val=X, y_val=y is what
        the paper's code usually does, and optimistic: each example pulls the mean of its class towards itself.
        """
        if (X_val is None) != (y_val is None):
            raise ValueError("X_val and y_val come together, or not at all.")
        self.__dict__.pop("classes_", None)  # anew, whatever was learned before
        self.partial_fit(X, y)
        if X_val is None:
            self.partial_validate(X, y, leave_one_out=True)
        else:
            self.partial_validate(X_val, y_val)
        if not self._n_val.all():
            raise ValueError(f"no validation example of {self.classes_[self._n_val == 0].tolist()}.")
        return self

    def partial_fit(self, X: ArrayLike, y: ArrayLike, classes: ArrayLike | None = None) -> "CALM":
        """Add examples to the class means; for streams too large to be held at once.

        The first call needs all labels, in `classes` or in y. After the last one comes `partial_validate`, with the
        same stream once more or with another. (`fit` is these two.)
        """
        X, y = check_vectors(X, y, shape=self._sums.shape[1:] if hasattr(self, "classes_") else None)
        if not hasattr(self, "classes_"):
            self._check_settings(n_heads=X.shape[1])
            self.classes_ = labels(y if classes is None else classes)
            self._sums = np.zeros((len(self.classes_), *X.shape[1:]))  # (C, K, D)
            self._n_fit = np.zeros(len(self.classes_), dtype=int)
        own = class_index(y, self.classes_)
        self._sums += class_sums(X, own, len(self.classes_))
        self._n_fit += self._count(own)
        self.prototypes_ = unit(self._sums)  # the sum points where the mean does
        self._credit = np.zeros((X.shape[1], len(self.classes_)))  # (K, C); other means, other reliability
        self._n_val = np.zeros(len(self.classes_), dtype=int)
        for name in ("reliability_", "weights_"):
            self.__dict__.pop(name, None)
        return self

    def partial_validate(self, X: ArrayLike, y: ArrayLike, leave_one_out: bool = False) -> "CALM":
        """Add examples to the reliability; weights are there once each class has had an example.

        `leave_one_out` says that these examples are among those of `partial_fit`: each is then compared with the mean
        of the others of its class, which is the class sum less the example. No class mean is computed anew.
        """
        check_is_fitted(self, "prototypes_")
        X, y = check_vectors(X, y, shape=self.prototypes_.shape[1:])
        own = class_index(y, self.classes_)
        if not self._n_fit.all():
            raise ValueError(f"no example of {self.classes_[self._n_fit == 0].tolist()} to make a class mean of.")
        alone = np.unique(own[self._n_fit[own] < 2])
        if leave_one_out and alone.size:
            raise ValueError(
                f"class {self.classes_[alone].tolist()} has one example, which leaves none to judge it by; "
                "pass X_val and y_val."
            )
        for rows in blocks(len(X), self.prototypes_):
            close = cosines(X[rows], self.prototypes_)  # (n, K, C)
            if leave_one_out:
                others = unit(self._sums[own[rows]] - X[rows])  # (n, K, D)
                close[np.arange(len(close)), :, own[rows]] = (unit(X[rows]) * others).sum(-1)
            earned = credit(softmax(close / self.tau, axis=-1), own[rows], self.weighting)  # (n, K)
            self._credit += earned.T @ np.eye(len(self.classes_))[own[rows]]
        self._n_val += self._count(own)
        if self._n_val.all():
            mean = self._credit / self._n_val
            self.reliability_ = (self._n_val * mean + self.shrinkage * mean.mean()) / (self._n_val + self.shrinkage)
            self.weights_ = class_weights(self.reliability_, self.weighting, self.tau_w, self.top_k)
        return self

    def posterior(self, X: ArrayLike) -> np.ndarray:
        """Return what each head believes, p_kc(x): (n, K, C); sums to 1 over the classes."""
        check_is_fitted(self, "prototypes_")
        X = check_vectors(X, shape=self.prototypes_.shape[1:])
        return softmax(cosines(X, self.prototypes_) / self.tau, axis=-1)

    def votes(self, X: ArrayLike) -> np.ndarray:
        """Return the weighted vote on each class, Σ_k w_kc p_kc(x): (n, C), between 0 and 1."""
        check_is_fitted(self, "weights_")
        X = check_vectors(X, shape=self.prototypes_.shape[1:])
        parts = [
            np.einsum("nkc,kc->nc", self.posterior(X[rows]), self.weights_) for rows in blocks(len(X), self.prototypes_)
        ]
        return np.concatenate(parts)

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Return the class with the largest vote: (n,)."""
        best = self.votes(X).argmax(1)
        return self.classes_[best]

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Return the votes, scaled to sum 1 over the classes: (n, C). An order, not a calibrated probability."""
        votes = self.votes(X)
        total = votes.sum(1, keepdims=True)
        return np.divide(votes, total, out=np.full_like(votes, 1 / votes.shape[1]), where=total > 0)

    def _check_settings(self, n_heads):
        if self.weighting not in WEIGHTINGS:
            raise ValueError(f"weighting must be one of {WEIGHTINGS}, got {self.weighting!r}.")
        for name, value in (("tau", self.tau), ("tau_w", self.tau_w)):
            if not (isinstance(value, Real) and 0 < value < np.inf):
                raise ValueError(f"{name} must be a finite number above 0, got {value!r}.")
        if not (isinstance(self.shrinkage, Real) and 0 <= self.shrinkage < np.inf):
            raise ValueError(f"shrinkage must be a finite number, 0 or above, got {self.shrinkage!r}.")
        if self.top_k is not None and not is_count(self.top_k, most=n_heads):
            raise ValueError(f"top_k must be a whole number in 1..{n_heads}, the number of heads, got {self.top_k!r}.")

    def _count(self, own):
        return np.bincount(own, minlength=len(self.classes_))


def credit(posterior: np.ndarray, own: np.ndarray, weighting: str) -> np.ndarray:
    """Return how well each head does on each example: posterior (n, K, C), index of the class (n,) -> (n, K).

    With c the example's class: "prob_softmax" p_kc; "brier_softmax" 2 p_kc - Σ_c' p_kc'²; "margin_softmax"
    p_kc - max_{c' ≠ c} p_kc'; "margin_clamped" the same, but 0 where it would be negative.
    """
    n = np.arange(len(own))
    right = posterior[n, :, own]
    if weighting == "prob_softmax":
        return right
    if weighting == "brier_softmax":
        return 2 * right - (posterior**2).sum(-1)
    others = posterior.copy()
    others[n, :, own] = 0
    margin = right - others.max(-1)
    return margin.clip(min=0) if weighting == "margin_clamped" else margin


def class_weights(reliability: np.ndarray, weighting: str, tau_w: float = 1.0, top_k: int | None = None) -> np.ndarray:
    """Turn reliability (K, C) into weights (K, C) that sum to 1 over the heads.

    "margin_clamped": r^(1/tau_w), scaled to sum 1, and uniform for a class that no head knows; else softmax_k(r/tau_w).
    """
    best = reliability.max(0)
    if weighting == "margin_clamped":
        weights = (reliability / np.where(best > 0, best, 1)) ** (1 / tau_w)  # of the best, so that none underflows
    else:
        weights = np.exp((reliability - best) / tau_w)
    if top_k is not None:
        np.put_along_axis(weights, np.argsort(-reliability, axis=0, kind="stable")[top_k:], 0, axis=0)
    total = weights.sum(0)
    return np.where(total > 0, weights / np.where(total > 0, total, 1), 1 / len(weights))
