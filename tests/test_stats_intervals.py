"""Intervals of one rate against statsmodels, brute force and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from stats_data import beta_binomial
from statsmodels.stats.proportion import proportion_confint

from steerback.stats import bootstrap_rate, cluster_rate, wilson
from steerback.stats.bootstrap import (
    bootstrap,
    cluster_codes,
    percentile_interval,
    resamples,
    sum_by_cluster,
)
from steerback.stats.intervals import clustered_wilson, design_effect


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 17), (17, 17), (3, 65), (370, 5000)])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_wilson_is_statsmodels(k, n, level):
    expected = proportion_confint(k, n, alpha=1 - level, method="wilson")
    np.testing.assert_allclose(wilson(k, n, level), expected, atol=1e-12)


def test_nothing_observed_is_unknown():
    rate = cluster_rate([], [])
    assert (rate.n, rate.clusters) == (0, 0)
    assert math.isnan(rate.rate)
    assert math.isnan(rate.low)
    assert math.isnan(bootstrap_rate([], []).high)


def test_one_cluster_says_nothing_of_others():
    rate = cluster_rate([True, False, True], ["a"] * 3)
    assert (rate.low, rate.high) == (0, 1)


def test_design_effect_by_hand():
    """20 clusters of 5, all or nothing: every cluster is worth one trial."""
    successes, sizes = np.r_[np.full(10, 5.0), np.zeros(10)], np.full(20, 5.0)
    seen = 20 / 19 * (20 * 2.5**2) / 100**2 / (0.25 / 100)
    weight = 50 / 60
    assert design_effect(successes, sizes) == pytest.approx(weight * seen + (1 - weight) * 1.4)
    assert seen == pytest.approx(5 * 20 / 19)


@pytest.mark.parametrize("k", [0, 500])
def test_no_event_still_has_width_and_pays_for_clustering(k):
    sizes = np.full(100, 5.0)
    low, high = clustered_wilson(np.full(100, k / 100), sizes)
    free = wilson(k, 500)
    assert (low == 0) if k == 0 else (high == 1)
    assert 1.2 < (high - low) / (free[1] - free[0]) < 1.6


def test_independent_trials_give_wilson_with_t():
    """One trial per cluster: the design effect is 1 up to n / (n - 1)."""
    success = np.arange(65) % 4 == 0
    rate = cluster_rate(success, range(65))
    np.testing.assert_allclose((rate.low, rate.high), wilson(17, 65), atol=0.006)


trials = st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=1, max_size=60)


@given(trials, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_bounds_hold_and_order_does_not_matter(data, random):
    success, clusters = zip(*data, strict=True)
    rate = cluster_rate(success, clusters)
    assert 0 <= rate.low <= rate.rate <= rate.high <= 1
    assert rate.k == sum(success)
    assert rate.clusters == len(set(clusters))
    boot = bootstrap_rate(success, clusters, n_resamples=50)
    shuffled = list(data)
    random.shuffle(shuffled)
    again = zip(*shuffled, strict=True)
    success, clusters = again
    assert cluster_rate(success, clusters) == rate
    # repr: one cluster has NaN bounds, which are not equal to themselves
    assert repr(bootstrap_rate(success, clusters, n_resamples=50)) == repr(boot)


@pytest.mark.parametrize("n_clusters", [1, 3, 17, 65])
def test_resamples_draw_as_many_clusters_as_there_are(n_clusters):
    blocks = list(resamples(n_clusters, 37, 0))
    counts = np.concatenate(blocks)
    assert counts.shape == (37, n_clusters)
    assert (counts.sum(axis=1) == n_clusters).all()
    np.testing.assert_array_equal(counts, np.concatenate(list(resamples(n_clusters, 37, 0))))


def test_resamples_are_multinomial():
    counts = np.concatenate(list(resamples(5, 20_000, 1)))
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.03)
    np.testing.assert_allclose(counts.var(axis=0), 0.8, atol=0.03)
    assert np.cov(counts.T)[0, 1] == pytest.approx(-0.2, abs=0.02)


def test_blocks_join_to_all_resamples():
    """More counts than fit one block: the statistic sees them all, none twice."""
    n_clusters = 3000
    blocks = [len(b) for b in resamples(n_clusters, 1000, 0)]
    assert len(blocks) > 1
    assert sum(blocks) == 1000
    assert len(bootstrap(lambda w: w[:, 0], n_clusters, 1000, 0)) == 1000


@pytest.mark.parametrize("n", [1, 3, 17, 65])
def test_sums_by_cluster(n):
    rng = np.random.default_rng(n)
    names, values = rng.integers(0, 4, n), rng.normal(size=(n, 2))
    codes, n_clusters = cluster_codes(list(names))
    slow = [values[names == name].sum(axis=0) for name in np.unique(names)]
    np.testing.assert_allclose(sum_by_cluster(codes, n_clusters, values), slow)


def test_expanded_percentile_of_a_normal_is_the_t_interval():
    """Hesterberg's point: samples with sd s sqrt((n-1)/n) must give mean +- t s."""
    n, s = 12, 3.0
    samples = np.random.default_rng(0).normal(0, s * math.sqrt((n - 1) / n), 400_000)
    low, high = percentile_interval(samples, n)
    t = stats.t.ppf(0.975, n - 1)
    np.testing.assert_allclose((low, high), (-t * s, t * s), rtol=0.01)


def test_expanded_percentile_keeps_infinities_and_drops_nan():
    samples = np.r_[np.full(50, np.inf), np.arange(50.0), np.full(100, np.nan)]
    low, high = percentile_interval(samples, 500)
    assert low < 4
    assert high == np.inf
    assert np.isnan(percentile_interval(np.full(9, np.nan), 5)).all()


def test_bootstrap_of_single_trials_is_the_independent_bootstrap():
    success = np.arange(200) < 60
    ours = bootstrap_rate(success, range(200), n_resamples=4000)
    plain = stats.bootstrap(
        (success.astype(float),), np.mean, n_resamples=4000, method="percentile", rng=0
    ).confidence_interval
    np.testing.assert_allclose((ours.low, ours.high), plain, atol=0.011)


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_the_default_interval_covers_where_wilson_does_not(rate):
    """A small form of benchmarks/coverage.py: 100 directions x 5, ICC 0.1; se of coverage 0.7%."""
    sizes = np.full(100, 5)
    successes = beta_binomial(np.random.default_rng(7), sizes, rate, 0.1, 1000)
    ours = np.array([clustered_wilson(k.astype(float), sizes.astype(float)) for k in successes])
    plain = np.array([wilson(k.sum(), 500) for k in successes])
    covered, naive = (np.mean((x[:, 0] <= rate) & (rate <= x[:, 1])) for x in (ours, plain))
    assert 0.925 < covered < 0.975
    assert naive < 0.93


def test_rates_near_1_are_treated_as_their_complement():
    """Few failures are as little to estimate clustering from as few successes."""
    rng = np.random.default_rng(2)
    sizes = rng.integers(1, 9, 17).astype(float)
    successes = np.minimum(sizes, rng.binomial(1, 0.3, 17))
    low, high = clustered_wilson(successes, sizes)
    np.testing.assert_allclose(clustered_wilson(sizes - successes, sizes), (1 - high, 1 - low))


def test_clusters_more_alike_than_chance_do_not_make_trials_worth_more():
    """Ten directions with exactly one success in two: the estimated variance is 0."""
    sizes, weight = np.full(10, 2.0), 10 / 20
    assert design_effect(np.ones(10), sizes) == weight * 1 + (1 - weight) * 1.1


def test_few_clusters_use_t():
    """Wilson's interval solves (p - x)^2 = t^2 x (1 - x) / n_eff at both ends."""
    successes, sizes = np.array([3.0, 5.0, 1.0, 4.0]), np.full(4, 6.0)
    effective = 24 / design_effect(successes, sizes)
    for end in clustered_wilson(successes, sizes):
        t = abs(13 / 24 - end) / math.sqrt(end * (1 - end) / effective)
        assert t == pytest.approx(stats.t.ppf(0.975, 3))
