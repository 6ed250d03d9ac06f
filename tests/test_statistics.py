import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.proportion import proportion_confint

from helpers.statistics import (
    accuracy_interval,
    chance_interval,
    cluster_bootstrap,
    crossed_bootstrap,
    holm,
    mcnemar,
    random_guess,
)


@pytest.mark.parametrize(("correct", "total"), [(0, 7), (7, 7), (668, 1000), (1, 11)])
def test_accuracy_interval_is_wilsons(correct, total):
    low, high = accuracy_interval(correct, total)
    assert (low, high) == pytest.approx(proportion_confint(correct, total, method="wilson"))
    # From the definition: both ends are the shares from which the observed one is 1.96 standard errors away.
    for end in (low, high):
        variance = end * (1 - end) / total
        assert (correct / total - end) ** 2 == pytest.approx(stats.norm.ppf(0.975) ** 2 * variance, abs=1e-12)


def test_accuracy_interval_of_outcomes():
    assert accuracy_interval([True, True, False]) == accuracy_interval(2, 3)


@pytest.mark.parametrize("arguments", [(0, 0), (4, 3), ([],), ([True, None],)])
def test_accuracy_interval_refuses(arguments):
    with pytest.raises(ValueError):
        accuracy_interval(*arguments)


def test_mcnemar_by_hand():
    # 6 flips, all won: two-sided p = 2 / 2**6.
    first = [True, True] + [False] * 7
    second = [True, True] + [True] * 6 + [False]
    assert mcnemar(first, second) == (6, 0, 2 / 2**6)
    assert mcnemar(second, first) == (0, 6, 2 / 2**6)
    assert mcnemar(first, first) == (0, 0, 1.0)


def test_mcnemar_is_exact_for_many_items():
    rng = np.random.default_rng(0)
    first, second = rng.random(1000) < 0.64, rng.random(1000) < 0.67
    table = [[np.sum(first & second), np.sum(first & ~second)], [np.sum(~first & second), np.sum(~first & ~second)]]
    assert mcnemar(first, second).p == pytest.approx(statsmodels_mcnemar(table, exact=True).pvalue)


def test_mcnemar_needs_pairs():
    with pytest.raises(ValueError, match="same items"):
        mcnemar([True], [True, False])


def test_cluster_bootstrap_without_clusters_is_near_wilson():
    right = np.arange(1000) < 640
    low, high = cluster_bootstrap(right, np.arange(1000))
    assert (low, high) == pytest.approx(accuracy_interval(640, 1000), abs=0.004)


def test_cluster_bootstrap_sees_that_copies_are_no_evidence():
    few = np.arange(100) < 64
    once = cluster_bootstrap(few, np.arange(100))
    copied = cluster_bootstrap(np.repeat(few, 10), np.repeat(np.arange(100), 10))
    assert copied == pytest.approx(once, abs=1e-12)


def test_cluster_bootstrap_refuses():
    with pytest.raises(ValueError, match="two clusters"):
        cluster_bootstrap([1, 0], ["a", "a"])
    with pytest.raises(ValueError, match="its cluster"):
        cluster_bootstrap([1, 0], ["a"])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_chance_interval_is_exact():
    n_choices = [2] * 5 + [3] * 7 + [4] * 8
    low, high = chance_interval(n_choices)
    # Brute force: one item after the other, a hit or a miss.
    hits = np.array([1.0])
    for n in n_choices:
        hits = np.append(hits, 0) * (1 - 1 / n) + np.insert(hits, 0, 0) / n
    k_low, k_high = round(low * 20), round(high * 20)
    assert hits[:k_low].sum() < 0.025 <= hits[: k_low + 1].sum()
    assert hits[k_high + 1 :].sum() <= 0.025 < hits[k_high:].sum()


def test_chance_interval_agrees_with_guessing():
    n_choices = np.array([4] * 800 + [2] * 200)
    guesses = (np.random.default_rng(0).random((4000, 1000)) < 1 / n_choices).mean(axis=1)
    low, high = chance_interval(n_choices)
    assert 0.95 <= np.mean((low <= guesses) & (guesses <= high)) < 0.965
    assert low < random_guess(n_choices) < high and random_guess(n_choices) == 0.3


def test_chance_interval_refuses():
    with pytest.raises(ValueError):
        chance_interval([])


# ---- draws and items, crossed
def crossed(draws=10, items=200, spread_draws=0.1, spread_items=0.3, seed=0):
    rng = np.random.default_rng(seed)
    of_draws, of_items = rng.normal(0, spread_draws, (draws, 1)), rng.normal(0, spread_items, (1, items))
    return 0.5 + of_draws + of_items + rng.normal(0, 0.1, (draws, items))


def test_crossed_bootstrap_covers_the_truth_as_often_as_it_says():
    """The mean of many such tables is 0.5; items alone would cover it far too seldom."""
    both = alone = 0
    for seed in range(200):
        values = crossed(seed=seed)
        result = crossed_bootstrap(values, n_resamples=500)
        both += result.low < 0.5 < result.high
        interval = cluster_bootstrap(values.mean(0), [str(i) for i in range(200)], n_resamples=200)
        alone += interval.low < 0.5 < interval.high
    assert 0.85 <= both / 200 <= 1  # with ten draws, percentiles are a little short
    assert alone / 200 < 0.75


def test_crossed_bootstrap_of_one_draw_is_the_plain_one():
    values = np.random.default_rng(0).random(100) < 0.7
    result, plain = crossed_bootstrap(values), cluster_bootstrap(values, [str(i) for i in range(100)])
    assert result.mean == values.mean() and np.allclose((result.low, result.high), plain, atol=0.011)


def test_crossed_bootstrap_leaves_out_what_was_not_tried_and_keeps_clusters_whole():
    values = crossed(draws=5, items=60)
    gaps = values.copy()
    gaps[0, :30] = np.nan
    assert crossed_bootstrap(gaps).mean == pytest.approx(np.nanmean(gaps))
    doubled = np.repeat(values, 4, axis=1)
    once, fours = crossed_bootstrap(values), crossed_bootstrap(doubled, np.repeat(np.arange(60), 4))
    assert np.allclose(once, fours)  # four copies of an item tell no more than the item
    naive = crossed_bootstrap(doubled - doubled.mean(1, keepdims=True))
    assert naive.high - naive.low < 0.7 * (fours.high - fours.low)


def test_p_of_the_crossed_bootstrap():
    assert crossed_bootstrap(crossed() - 0.5).p > 0.05
    assert crossed_bootstrap(crossed()).p < 0.001
    assert crossed_bootstrap(np.zeros((3, 5))).p == 1


@pytest.mark.parametrize(
    ("values", "clusters"),
    [(np.ones((2, 3)), ["a", "b"]), (np.ones((2, 2)), ["a", "a"]), (np.full((2, 2), np.nan), None)],
)
def test_crossed_bootstrap_refuses(values, clusters):
    with pytest.raises(ValueError, match=r"with a cluster an item|at least two clusters"):
        crossed_bootstrap(values, clusters)
