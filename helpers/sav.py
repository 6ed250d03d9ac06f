"""SAV: the heads that tell the classes of a few examples apart best vote on a new one, each with the same weight.

Sparse Attention Vectors (arXiv 2412.00142; ICCV 2025), the uniform vote that CALM improves on. Taught in Part III.
n examples, K heads, D numbers a head, C classes.
"""

import numpy as np
from numpy.typing import ArrayLike
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


class SAV(HeadClassifier):
    """Uniform vote of the heads that most often classify the examples themselves right, by nearest class mean.

    Parameters
    ----------
    n_heads : int
        How many heads vote. With one example a class every head gets all of them right, and the first heads are taken:
        let all vote there.

    Attributes
    ----------
    classes_ : (C,)
    prototypes_ : (C, K, D)
        Class means of each head, scaled to length 1.
    hits_ : (K,)
        How many examples each head gets right.
    heads_ : (n_heads,)
        The heads that vote, best first.
    """

    def __init__(self, n_heads: int = 20):
        self.n_heads = n_heads

    def fit(self, X: ArrayLike, y: ArrayLike) -> "SAV":
        """Learn from head vectors X and their labels y (n,)."""
        X, y = check_vectors(X, y)
        if not is_count(self.n_heads, most=X.shape[1]):
            n = X.shape[1]
            raise ValueError(f"n_heads must be a whole number in 1..{n}, the number of heads, got {self.n_heads!r}.")
        self.classes_ = labels(y)
        own = class_index(y, self.classes_)  # (n,)
        self.prototypes_ = unit(class_sums(X, own, len(self.classes_)))  # the sum points where the mean does
        self.hits_ = (self.nearest(X) == own[:, None]).sum(0)
        self.heads_ = np.argsort(-self.hits_, kind="stable")[: self.n_heads]
        return self

    def nearest(self, X: ArrayLike) -> np.ndarray:
        """Return every head's vote, argmax_c cos(h_k(x), m_kc): (n, K), indices into `classes_`."""
        check_is_fitted(self, "prototypes_")
        X = check_vectors(X, shape=self.prototypes_.shape[1:])
        parts = [cosines(X[rows], self.prototypes_).argmax(-1) for rows in blocks(len(X), self.prototypes_)]
        return np.concatenate(parts)

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Return the class with the most votes (n,); of two with as many, the one whose heads have more hits."""
        check_is_fitted(self)
        hits = self.hits_[self.heads_]
        return self.classes_[self._count(X, 1 + hits / (1 + hits.sum())).argmax(1)]  # all extras are less than a vote

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Return each class's share of the votes: (n, C)."""
        check_is_fitted(self)
        return self._count(X, np.full(len(self.heads_), 1 / len(self.heads_)))

    def _count(self, X, weights):
        votes = self.nearest(X)[:, self.heads_, None] == np.arange(len(self.classes_))  # (n, n_heads, C)
        return np.einsum("nhc,h->nc", votes, weights)
