"""Paired comparisons against resampling trial by trial, exact enumeration and published examples."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from stats_data import arm, trial
from statsmodels.stats.proportion import confint_proportions_2indep

from steerback.errors import UserError
from steerback.stats import MEASURES, compare
from steerback.stats.intervals import wilson
from steerback.stats.mover import difference, product, quotient
from steerback.stats.paired import swap_test


def means(pairs, name):
    measure = MEASURES[name]
    out = []
    for side in zip(*pairs, strict=True):
        values = [v for o in side if (v := measure.value(o)) is not None]
        out.append(np.mean(values) if values else math.nan)
    return out


@pytest.mark.parametrize("name", ["multi_attempt", "cond_improvement", "esr", "score_delta"])
def test_difference_and_ratio_equal_resampling_the_trials(name):
    a, b = arm(1, 17, 8, restart=0.5), arm(2, 17, 8, restart=0.4)
    c = compare(a, b, name, n_resamples=2000)
    pairs = list(zip(a, b, strict=True))
    ma, mb = means(pairs, name)
    assert (c.a, c.b) == (pytest.approx(ma), pytest.approx(mb))
    assert c.difference.value == pytest.approx(mb - ma)
    assert c.ratio.value == pytest.approx(mb / ma)
    rng = np.random.default_rng(0)
    groups = [[p for p in pairs if p[0].cluster == f"k{k}"] for k in range(17)]
    draws = []
    for _ in range(1500):
        drawn = itertools.chain.from_iterable(groups[i] for i in rng.integers(0, 17, 17))
        x, y = means(list(drawn), name)
        draws.append((y - x, y / x))
    tail = stats.norm.cdf(-math.sqrt(17 / 16) * stats.t.ppf(0.975, 16))
    slow = np.quantile(draws, [tail, 1 - tail], axis=0).T
    width = slow[:, 1] - slow[:, 0]
    for ours, (low, high), w in zip((c.difference, c.ratio), slow, width, strict=True):
        assert abs(ours.low - low) < 0.12 * w
        assert abs(ours.high - high) < 0.12 * w


def test_pairing_makes_intervals_narrow():
    a = arm(1, 30, 5, restart=0.4)
    b = [replace(o, n_attempts=1, last=o.first) if i % 10 == 0 else o for i, o in enumerate(a)]
    paired = compare(a, b, "multi_attempt").difference
    shuffled = [replace(o, pair=p.pair) for o, p in zip(b, b[5:] + b[:5], strict=True)]
    crossed = [replace(o, cluster=p.cluster) for o, p in zip(shuffled, b[5:] + b[:5], strict=True)]
    loose = compare(a, crossed, "multi_attempt").difference
    assert paired.high - paired.low < 0.5 * (loose.high - loose.low)


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
@pytest.mark.parametrize("conditional", [False, True])
def test_swap_test_is_the_enumeration_of_all_swaps(alternative, conditional):
    rng = np.random.default_rng(3)
    den = rng.integers(2, 6, (9, 2)) if conditional else np.full((9, 2), 5)
    num = rng.binomial(den, [0.3, 0.6])
    sums = np.stack([num[:, 0], den[:, 0], num[:, 1], den[:, 1]], axis=1).astype(float)

    def gap(s):
        x = s.sum(axis=0)
        return x[2] / x[3] - x[0] / x[1]

    sign = {"two-sided": abs, "greater": lambda v: v, "less": lambda v: -v}[alternative]
    null = [
        gap(np.where(np.array(swaps)[:, None], sums[:, [2, 3, 0, 1]], sums))
        for swaps in itertools.product([False, True], repeat=9)
    ]
    exact = np.mean([sign(v) >= sign(gap(sums)) - 1e-9 for v in null])
    assert swap_test(sums, alternative, n_resamples=40_000) == pytest.approx(exact, abs=0.01)


def test_one_sided_p_values_know_the_direction():
    a, b = arm(1, 40, 5, restart=0.2), arm(2, 40, 5, restart=0.6)
    up = compare(a, b, "multi_attempt", alternative="greater")
    down = compare(a, b, "multi_attempt", alternative="less")
    assert up.p < 0.01
    assert down.p > 0.99


def test_swap_test_keeps_its_level():
    rng = np.random.default_rng(4)
    q = rng.beta(0.45, 8.55, (400, 40))
    p_values = [
        swap_test(
            np.stack([x[0], np.full(40, 5), x[1], np.full(40, 5)], axis=1).astype(float),
            n_resamples=199,
            seed=i,
        )
        for i, x in enumerate(rng.binomial(5, q[:, None, :].repeat(2, axis=1)))
    ]
    assert np.mean(np.array(p_values) <= 0.05) < 0.085  # 0.05 + 3 se


def test_what_is_left_out_is_counted():
    a = [trial(10.0, pair=str(i), key=f"a{i}", cluster=f"k{i}") for i in range(5)]
    b = [trial(20.0, pair=str(i), key=f"b{i}", cluster=f"k{i}") for i in range(2, 8)]
    b[0] = trial(None, pair="2", key="b2", cluster="k2")
    c = compare(a, b, "first_score")
    assert (c.pairs, c.clusters, c.missing, c.unpaired) == (2, 2, 1, (2, 3))
    assert c.difference.value == 10
    assert c.ratio.value == 2


def test_degraded_needs_no_score():
    a = [trial(None, pair=str(i), key=f"{i}", cluster=f"{i}", degraded=i < 2) for i in range(9)]
    assert compare(a, a, "degraded").pairs == 9


def test_no_events_in_either_arm_is_not_certainty():
    a = arm(1, 20, 5, restart=0)
    c = compare(a, a, "esr")
    assert c.difference.value == 0
    assert c.difference.low < 0 < c.difference.high
    assert c.difference.high < 0.1
    assert math.isnan(c.ratio.value)
    assert c.p == 1


def test_an_arm_that_loses_all_its_events():
    a = [
        trial(10.0, 90.0 if i < 6 else None, pair=str(i), key=str(i), cluster=str(i // 3))
        for i in range(90)
    ]
    b = [replace(o, n_attempts=1, last=o.first) for o in a]
    c = compare(a, b, "esr")
    assert c.ratio.value == 0
    assert 0 == c.ratio.low < c.ratio.high < 2
    assert c.difference.low < -6 / 90 < c.difference.high
    back = compare(b, a, "esr")
    assert back.ratio.high == math.inf
    assert back.ratio.low > 0


def test_errors_name_the_key_and_the_remedy():
    a, b = [trial(1.0, pair="x", key="1")], [trial(1.0, pair="y", key="2")]
    with pytest.raises(UserError, match="no trial of one arm has a twin"):
        compare(a, b, "esr")
    with pytest.raises(UserError, match="trials 1 and 3 of one arm have the same pair key 'x'"):
        compare([*a, trial(1.0, pair="x", key="3")], b, "esr")
    with pytest.raises(UserError, match="cluster 'c' in one arm and 'd' in the other"):
        compare(a, [trial(1.0, pair="x", key="2", cluster="d")], "esr")
    with pytest.raises(UserError, match="unknown measure 'ers'; did you mean 'esr'"):
        compare(a, a, "ers")
    with pytest.raises(UserError, match="use 'two-sided', 'greater'"):
        compare(a, a, "esr", alternative="bigger")


@pytest.mark.parametrize(
    ("k1", "n1", "k2", "n2"), [(9, 10, 3, 10), (5, 56, 0, 29), (56, 70, 48, 80)]
)
def test_square_and_add_is_newcombe(k1, n1, k2, n2):
    b, a = ((k / n, *wilson(k, n)) for k, n in ((k1, n1), (k2, n2)))
    expected = confint_proportions_2indep(k1, n1, k2, n2, compare="diff", method="newcomb")
    np.testing.assert_allclose(difference(b, a), expected, atol=1e-9)


@pytest.mark.parametrize(("kb", "ka"), [(3, 40), (20, 30), (0, 25), (40, 12)])
def test_quotient_is_where_the_difference_touches_zero(kb, ka):
    """Donner and Zou derive the ratio R from b - R a: its MOVER interval must end at 0."""
    b, a = ((k / 200, *wilson(k, 200)) for k in (kb, ka))
    low, high = quotient(b, a)
    for ratio_, end in ((low, 0), (high, 1)):
        if ratio_ > 0:
            scaled = tuple(ratio_ * v for v in a)
            assert difference(b, scaled)[end] == pytest.approx(0, abs=1e-9)
    assert low <= b[0] / a[0] <= high


@pytest.mark.parametrize("effect", [(0.4, 0.1, 0.6), (-0.4, -0.7, 0.2), (0.0, -0.2, 0.2)])
def test_product_close_to_simulation(effect):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2, 200_000)) / 1.96

    def draw(e, z):
        return e[0] + np.where(z > 0, z * (e[2] - e[0]), z * (e[0] - e[1]))

    share = (0.2, 0.17, 0.24)
    low, high = np.quantile(draw(share, z[0]) * draw(effect, z[1]), [0.025, 0.975])
    np.testing.assert_allclose(product(share, effect), (low, high), atol=0.01)


def test_product_of_a_known_effect_carries_the_share_alone():
    """An effect without error scales the share's interval; a negative one turns it round."""
    share = (0.2, 0.15, 0.3)
    assert product(share, (0.5, 0.5, 0.5)) == pytest.approx((0.075, 0.15))
    assert product(share, (-0.5, -0.5, -0.5)) == pytest.approx((-0.15, -0.075))


def test_a_swap_that_empties_an_arm_is_no_evidence():
    """One case in each arm, in different directions: half of the labellings put both in one arm."""
    sums = np.array([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    assert swap_test(sums) == 1
    assert swap_test(sums, "less") == pytest.approx(0.75, abs=0.04)
