"""Influences against removed trials, intervals against scipy's t."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from stats_data import arm, trial

from steerback.averages import cluster_mean
from steerback.stats import compare, summarise
from steerback.stats.bootstrap import cluster_codes
from steerback.stats.influence import FEW_CLUSTERS, at_least_t, of_chance, of_ratio


def slopes(statistic, n: int) -> np.ndarray:
    """n times the change of `statistic` (of weights [n]) per unit weight of each trial."""
    step, whole = 1e-6, statistic(np.ones(n))
    return np.array([n * (statistic(np.ones(n) + step * row) - whole) / step for row in np.eye(n)])


@pytest.mark.parametrize("n", [3, 17, 65])
def test_influences_are_slopes(n):
    rng = np.random.default_rng(n)
    multi = (rng.random(n) < 0.6).astype(float)
    multi[0] = 1.0
    first = rng.integers(0, 5, n).astype(float)  # many ties
    pairs = multi[:, None] * (first[None, :] > first[:, None])

    def share(w):
        return (w * first) @ multi / (w @ multi)

    def chance(w):
        """Weighted pairs, their number as if no trial met itself."""
        return w @ pairs @ w / (w.sum() ** 2 * (n - 1) / n)

    np.testing.assert_allclose(of_ratio(first * multi, multi), slopes(share, n), atol=1e-3)
    np.testing.assert_allclose(of_chance(first, multi), slopes(chance, n), atol=1e-3)


@pytest.mark.parametrize("n", [2, 3, 11])
def test_single_trials_get_the_t_interval_of_scipy(n):
    values = np.random.default_rng(n).choice([0.0, 100.0], n) + np.arange(n)
    mean = values.mean()
    found = at_least_t((mean, mean), mean, values - mean, np.arange(n), (n, n))
    expected = stats.t.interval(0.95, n - 1, loc=mean, scale=stats.sem(values))
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("clusters", [3, 8])
def test_equal_clusters_get_the_t_interval_of_their_means(clusters):
    rng = np.random.default_rng(clusters)
    values = rng.normal(0, 10, (clusters, 1)) + rng.normal(0, 1, (clusters, 5))
    mean, codes = values.mean(), np.arange(clusters).repeat(5)
    found = at_least_t((mean, mean), mean, values.ravel() - mean, codes, (5 * clusters, clusters))
    means = values.mean(axis=1)
    expected = stats.t.interval(0.95, clusters - 1, loc=mean, scale=stats.sem(means))
    np.testing.assert_allclose(found, expected)


def test_clusters_that_lie_together_by_accident_are_not_certainty():
    """Half of the scores are 0 and half 100 in each of six directions: their means do not differ."""
    trials = [
        trial(100.0 * (i % 2), cluster=f"k{i // 4}", key=str(i), pair=str(i)) for i in range(24)
    ]
    s = summarise(trials).first_score
    half = stats.t.ppf(0.975, 5) * stats.sem([o.first for o in trials])
    assert (s.low, s.high) == pytest.approx((50 - half, 50 + half))
    means = cluster_mean(np.array([o.first for o in trials]), [o.cluster for o in trials])
    assert (means.low, means.high) == pytest.approx((s.low, s.high))


def test_paired_differences_hold_the_t_interval_of_scipy():
    a = [trial(float(x), cluster=f"k{x}", key=f"a{x}", pair=f"{x}") for x in range(7)]
    rng = np.random.default_rng(0)
    b = [trial(o.first + rng.integers(0, 20), cluster=o.cluster, key="b", pair=o.pair) for o in a]
    expected = stats.ttest_rel([o.first for o in b], [o.first for o in a]).confidence_interval()
    found = compare(a, b, "first_score", n_resamples=200).difference
    assert found.low <= expected.low + 1e-9
    assert found.high >= expected.high - 1e-9
    assert found.low == pytest.approx(expected.low) or found.high == pytest.approx(expected.high)


def test_a_ratio_has_a_t_interval_on_the_log_scale():
    a = [trial(40.0, cluster=f"k{i}", key=f"a{i}", pair=str(i)) for i in range(4)]
    b = [trial(20.0 + 10 * i, cluster=f"k{i}", key=f"b{i}", pair=str(i)) for i in range(4)]
    found = compare(a, b, "first_score", n_resamples=200).ratio
    logs = stats.sem([20.0, 30.0, 40.0, 50.0]) / 35 * stats.t.ppf(0.975, 3)
    assert found.low == pytest.approx(math.exp(math.log(35 / 40) - logs))
    assert found.high == pytest.approx(math.exp(math.log(35 / 40) + logs))


def test_scores_stay_in_their_range():
    s = summarise([trial(97.0 + i % 2, cluster=f"k{i}", key=str(i)) for i in range(2)])
    assert s.first_score.high == 100
    assert s.first_score.low < 95


@pytest.mark.parametrize("clusters", [FEW_CLUSTERS, 24])
def test_with_many_clusters_nothing_is_changed(clusters):
    trials = arm(0, clusters, 5)
    codes, _ = cluster_codes([o.cluster for o in trials])
    influence = np.random.default_rng(0).normal(size=len(codes))
    assert at_least_t((1, 2), 1.5, influence, codes, (len(codes), clusters)) == (1, 2)


def test_a_single_restart_in_one_arm_is_compared_all_the_same():
    a = [trial(10.0, 90.0 + i, cluster=f"k{i}", key=f"a{i}", pair=str(i)) for i in range(4)]
    b = [
        trial(10.0, 50.0 if i == 1 else None, cluster=f"k{i}", key=f"b{i}", pair=str(i))
        for i in range(4)
    ]
    found = compare(a, b, "score_delta", n_resamples=100).difference
    assert (found.n, found.clusters) == (1, 4)
    assert found.low <= found.value <= found.high


def test_what_is_not_known_is_not_widened():
    codes = np.array([0, 0, 1])
    assert at_least_t((1, 2), 1.5, np.array([1, np.nan, 0]), codes, (3, 2)) == (1, 2)
    assert at_least_t((1, 2), 1.5, np.zeros(3), np.zeros(3, np.int64), (3, 1)) == (1, 2)
