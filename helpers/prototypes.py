"""Class means of head vectors, and how close a vector is to them: what SAV and CALM share.

n examples, K heads, D numbers a head, C classes.
"""

from collections.abc import Iterator
from numbers import Integral

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_array, check_consistent_length, column_or_1d


class HeadClassifier(ClassifierMixin, BaseEstimator):
    """A scikit-learn classifier of head vectors X: (n, K, D), or (n, layers, heads, D) as from `head_vectors`."""

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, True
        return tags


def check_vectors(X: ArrayLike, y: ArrayLike | None = None, shape: tuple[int, int] | None = None):
    """Return head vectors as (n, K, D), and their labels where there are any; refuse what can't be used.

    Parameters
    ----------
    X : (n, K, D), or (n, layers, heads, D) as from `head_vectors`
    y : (n,), optional
    shape : (K, D), optional
        What the classifier was fitted on.
    """
    X = check_array(np.asarray(X), dtype=[np.float32, np.float64], ensure_2d=False, allow_nd=True, input_name="X")
    if X.ndim not in (3, 4):
        raise ValueError(f"X must be (n, heads, dim) or (n, layers, heads, dim), got {X.shape}.")
    if X.ndim == 4:
        X = X.reshape(len(X), -1, X.shape[-1])
    if shape is not None and X.shape[1:] != tuple(shape):
        raise ValueError(f"X has {X.shape[1]} heads of {X.shape[2]} numbers, the class means {shape[0]} of {shape[1]}.")
    if y is None:
        return X
    y = column_or_1d(y)
    check_consistent_length(X, y)
    return X, y


def labels(y: np.ndarray) -> np.ndarray:
    """Return the labels that occur, sorted: (C,)."""
    classes = np.unique(y)
    if len(classes) < 2:
        raise ValueError(f"there is nothing to tell apart: the only class is {classes.tolist()}.")
    return classes


def class_index(y: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the place of each label among the classes: (n,)."""
    unknown = np.setdiff1d(y, classes)
    if unknown.size:
        raise ValueError(f"labels {unknown.tolist()} are not among the classes {classes.tolist()}.")
    return np.searchsorted(classes, y)


def is_count(value: object, most: int) -> bool:
    """Whether a setting is a whole number from 1 to `most`."""
    return isinstance(value, Integral) and not isinstance(value, bool) and 1 <= value <= most


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scale the last axis to length 1; a zero vector stays zero."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)


def class_sums(X: np.ndarray, index: np.ndarray, n_classes: int) -> np.ndarray:
    """Sum the vectors of each class in float64: X (n, K, D), index of the class (n,) -> (C, K, D)."""
    return np.stack([X[index == c].sum(0, dtype=np.float64) for c in range(n_classes)])


def cosines(X: np.ndarray, prototypes: np.ndarray) -> np.ndarray:
    """Cosine of each head's vector and its class means of length 1: (n, K, D), (C, K, D) -> (n, K, C)."""
    by_head = unit(X).transpose(1, 0, 2) @ prototypes.transpose(1, 2, 0)  # (K, n, D) @ (K, D, C)
    return by_head.transpose(1, 0, 2)


def blocks(n: int, prototypes: np.ndarray, numbers: int = 2**22) -> Iterator[slice]:
    """Cut n examples into slices that are worked on at once, in memory that does not grow with n."""
    n_classes, n_heads, dim = prototypes.shape
    size = max(1, numbers // (n_heads * max(n_classes, dim)))
    return (slice(start, start + size) for start in range(0, n, size))
