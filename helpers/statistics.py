"""How sure a score is: intervals, and tests for two runs on the same items. A thin layer on scipy and statsmodels."""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache, reduce
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint


class Interval(NamedTuple):
    """Ends of a 95% interval, as shares between 0 and 1 (of a difference: between -1 and 1)."""

    low: float
    high: float


class McNemar(NamedTuple):
    """Items that the second run won and lost against the first, and the two-sided p value."""

    won: int
    lost: int
    p: float


class Crossed(NamedTuple):
    """A mean over draws and items, the ends of its 95% interval, and the two-sided p value of "it is 0"."""

    mean: float
    low: float
    high: float
    p: float


def accuracy_interval(correct: int | Sequence[bool], total: int | None = None) -> Interval:
    """95% interval of an accuracy (Wilson 1927): good near 0 and 1 and for few items, where plus-minus is not.

    Parameters
    ----------
    correct : the number of right items out of `total`; or right and wrong item by item, without `total`.

    Raises
    ------
    ValueError
        If there is no item, or more right ones than items.
    """
    if total is None:
        correct, total = int(np.sum(_outcomes(correct))), len(correct)
    if total < 1 or not 0 <= correct <= total:
        raise ValueError(f"{correct} right of {total} items has no interval: at least one item, at most all right.")
    return Interval(*map(float, proportion_confint(correct, total, alpha=0.05, method="wilson")))


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """Did the second run do better than the first on the same items? (McNemar 1947, exact binomial form.)

    Only items whose outcome flips say anything: under "no difference" each is won or lost with probability one half.

    Raises
    ------
    ValueError
        If the two runs differ in length.
    """
    first, second = _outcomes(first), _outcomes(second)
    if first.shape != second.shape:
        raise ValueError(f"A paired test needs the same items in both runs, got {len(first)} and {len(second)}.")
    won, lost = int(np.sum(second & ~first)), int(np.sum(first & ~second))
    p = stats.binomtest(won, won + lost).pvalue if won + lost else 1.0
    return McNemar(won, lost, float(p))


def cluster_bootstrap(
    values: Sequence[float], clusters: Sequence[str], n_resamples: int = 5000, seed: int = 0
) -> Interval:
    """95% percentile interval of the mean of `values`, when values of one cluster are not independent.

    Clusters (say, source videos) are drawn with replacement, each with all its items. `values`: right or wrong, or the
    difference of two runs item by item.

    Raises
    ------
    ValueError
        If lengths differ, or there are fewer than two clusters to draw from.
    """
    if len(values) != len(clusters):
        raise ValueError(f"Each value needs its cluster, got {len(values)} values and {len(clusters)} clusters.")
    names, members = np.unique(np.asarray(clusters), return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"A bootstrap needs at least two clusters to draw from, got {len(names)}.")
    sums = np.bincount(members, weights=np.asarray(values, dtype=float))
    sizes = np.bincount(members)
    result = stats.bootstrap(
        (sums, sizes),
        lambda sums, sizes, axis: sums.sum(axis) / sizes.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=n_resamples,
        batch=500,  # bounds the memory: 500 draws at a time
        rng=np.random.default_rng(seed),
    )
    return Interval(*map(float, result.confidence_interval))


def crossed_bootstrap(
    values: ArrayLike, clusters: Sequence[str] | None = None, n_resamples: int = 10_000, seed: int = 0
) -> Crossed:
    """Mean over draws of the examples and over test items, when both might have been others (Owen 2007).

    Each resample takes draws with replacement and, crossed with them, clusters of items with replacement.

    Parameters
    ----------
    values : (draws, items)
        Right or wrong, or the difference of two classifiers; NaN where an item was not tried in a draw.
    clusters : (items,), optional
        What items share that are not independent; by default each item stands alone.

    Raises
    ------
    ValueError
        If shapes differ, nothing was tried, or there are fewer than two clusters.
    """
    values = np.atleast_2d(np.asarray(values, dtype=float))
    clusters = np.arange(values.shape[1]) if clusters is None else np.asarray(clusters)
    if values.ndim != 2 or clusters.shape != values.shape[1:]:
        raise ValueError(f"values are (draws, items) with a cluster an item, got {values.shape} and {clusters.shape}.")
    names, members = np.unique(clusters, return_inverse=True)
    tried = np.isfinite(values)
    if len(names) < 2 or not tried.any():
        raise ValueError(f"A bootstrap needs at least two clusters to draw from, got {len(names)}, and some value.")
    times = [_times_drawn(n, n_resamples, seed + axis) for axis, n in enumerate((len(values), len(names)))]
    sums, counts = (
        np.array([np.bincount(members, row) for row in table]) for table in (np.where(tried, values, 0.0), tried)
    )  # (draws, clusters)
    totals, sizes = (np.einsum("rd,dc,rc->r", times[0], table, times[1], optimize=True) for table in (sums, counts))
    means = totals[sizes > 0] / sizes[sizes > 0]
    low, high = np.quantile(means, [0.025, 0.975])
    beyond = min(np.sum(means <= 0), np.sum(means >= 0))
    return Crossed(float(values[tried].mean()), float(low), float(high), min(1.0, 2 * (beyond + 1) / (len(means) + 1)))


@lru_cache(maxsize=8)
def _times_drawn(n: int, n_resamples: int, seed: int) -> np.ndarray:
    """How often each of n is taken when n are drawn with replacement: (n_resamples, n)."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), n_resamples).astype(float)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979): the chance of any false alarm stays at the level.

    In the order they came in.
    """
    return multipletests(p_values, method="holm")[1].tolist()


def random_guess(n_choices: Sequence[int]) -> float:
    """Expected accuracy of guessing, for items with these numbers of options."""
    return float(np.mean(1 / np.asarray(n_choices)))


def chance_interval(n_choices: Sequence[int]) -> Interval:
    """The accuracies between which random guessing ends in at least 95% of runs: inside, a score shows no knowledge.

    Exact: the number of hits of independent guesses with probabilities 1/n is Poisson-binomial, that is, a sum of one
    binomial for each number of options.

    Raises
    ------
    ValueError
        If there is no item, or one without options.
    """
    counts = Counter(n_choices)
    if not counts or min(counts) < 1:
        raise ValueError("A chance interval needs at least one item, and at least one option in each.")
    hits = reduce(np.convolve, (stats.binom.pmf(np.arange(m + 1), m, 1 / n) for n, m in counts.items()))
    low, high = np.searchsorted(np.cumsum(hits), (0.025, 0.975))
    return Interval(float(low) / len(n_choices), float(high) / len(n_choices))


def _outcomes(outcomes: Sequence[bool]) -> np.ndarray:
    array = np.asarray(outcomes)
    if array.dtype != bool and not np.isin(array, (0, 1)).all():
        raise ValueError("An outcome is True or False; decide first how to count replies that can't be read.")
    return array.astype(bool)
