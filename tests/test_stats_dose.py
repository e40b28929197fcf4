"""The monotone fit against scipy's, ED50 against curves whose answer is known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression

from steerback.errors import UserError
from steerback.stats import dose_response
from steerback.stats.dose import ed50, falling_fit


@pytest.mark.parametrize("levels", [1, 2, 3, 8, 17])
def test_fit_is_scipys_isotonic_regression(levels):
    rng = np.random.default_rng(levels)
    mean, weight = rng.normal(size=(9, levels)), rng.integers(1, 9, (9, levels)).astype(float)
    slow = [
        isotonic_regression(m, weights=w, increasing=False).x
        for m, w in zip(mean, weight, strict=True)
    ]
    np.testing.assert_allclose(falling_fit(mean, weight), slow)


def test_levels_without_trials_take_a_value_between_their_neighbours():
    mean = np.array([[np.nan, 90.0, np.nan, 40.0, 60.0, np.nan]])
    weight = np.array([[0.0, 1.0, 0.0, 1.0, 1.0, 0.0]])
    fit = falling_fit(mean, weight)[0]
    np.testing.assert_allclose(fit[[1, 3, 4]], [90, 50, 50])
    assert (np.diff(fit) <= 0).all()


@given(st.lists(st.floats(0, 100), min_size=2, max_size=9), st.integers(0, 99))
@settings(deadline=None)
def test_fit_never_rises_and_ed50_is_in_range(scores, seed):
    weight = np.random.default_rng(seed).integers(0, 4, (1, len(scores))).astype(float)
    weight[0, 0] = 1
    fit = falling_fit(np.array([scores]), weight)
    assert (np.diff(fit) <= 1e-9).all()
    doses = np.arange(len(scores)) * 2.0
    dose = ed50(doses, fit)[0]
    assert dose == np.inf or 0 <= dose <= doses[-1]


@pytest.mark.parametrize(
    ("fit", "level", "expected"),
    [
        ([100, 80, 20, 0], None, 1.5),
        ([100, 80, 20, 0], 80, 1),
        ([100, 50, 50, 0], 50, 1),
        ([100, 80, 20, 0], 10, 2.5),
        ([100, 80, 20, 0], 100, 0),
        ([100, 80, 20, 10], 5, math.inf),
        ([40, 30, 20, 10], 50, -math.inf),
        ([60, 60, 60, 60], None, math.inf),
        ([60, 60, 60, 60], 60, 0),
    ],
)
def test_ed50_by_hand(fit, level, expected):
    assert ed50(np.arange(4.0), np.array([fit], float), level)[0] == pytest.approx(expected)


def sweep(seed, questions=10, middle=4.0, noise=10.0):
    rng = np.random.default_rng(seed)
    strength = np.tile(np.arange(9.0), questions)
    group = np.repeat(np.arange(questions), 9)
    curve = 100 / (1 + np.exp(2 * (strength - middle - rng.normal(0, 0.3, questions)[group])))
    return strength, curve + rng.normal(0, noise, len(strength)), group


def test_a_known_curve_is_recovered_and_covered():
    fits = [dose_response(*sweep(seed), level=50.0, n_resamples=300) for seed in range(60)]
    assert np.mean([f.ed50 for f in fits]) == pytest.approx(4, abs=0.1)
    assert np.mean([f.low <= 4 <= f.high for f in fits]) > 0.85
    assert all(f.reached == 1 for f in fits)


def test_resampling_equals_refitting_the_drawn_questions():
    strength, score, group = sweep(1, questions=5)
    ours = dose_response(strength, score, group, level=50.0, n_resamples=4000)
    rng = np.random.default_rng(9)
    slow = []
    for _ in range(2000):
        rows = np.concatenate([np.flatnonzero(group == g) for g in rng.integers(0, 5, 5)])
        mean = np.array([score[rows][strength[rows] == s].mean() for s in range(9)])
        fit = isotonic_regression(mean, increasing=False).x
        cross = np.flatnonzero(fit <= 50)[0]
        slow.append(cross - 1 + (fit[cross - 1] - 50) / (fit[cross - 1] - fit[cross]))
    low, high = np.quantile(slow, [0.001, 0.999])
    assert low - 0.1 <= ours.low <= ours.ed50 <= ours.high <= high + 0.1
    assert ours.high - ours.low > 0.5 * (high - low)


def test_record():
    f = dose_response([1, 0, 1, 0, 2], [50, 100, 60, 90, 70], "ababa", n_resamples=50)
    assert f.strength == (0, 1, 2)
    assert f.n == (2, 2, 1)
    assert f.mean == (95, 55, 70)
    assert f.fitted == pytest.approx((95, 60, 60))
    assert f.level == 77.5
    assert f.ed50 == pytest.approx(0.5)


def test_a_curve_that_never_falls_is_open_ended():
    strength, score, group = sweep(2, middle=50)
    f = dose_response(strength, score, group, level=30.0, n_resamples=50)
    assert (f.ed50, f.high, f.reached) == (math.inf, math.inf, 0)


def test_errors():
    with pytest.raises(UserError, match="2 strengths, 1 scores and 2 groups"):
        dose_response([1, 2], [1], ["a", "b"])
    with pytest.raises(UserError, match="all trials have one strength"):
        dose_response([1, 1], [1, 2], ["a", "b"])
