"""The beta-binomial mixture: against brute force, and on cells whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from steerback.errors import UserError
from steerback.stats.mixture import SMALLEST, Mixture, fit, log_likelihood, luck_of_the_best, shrunk


def cells(rates, n, seed):
    rng = np.random.default_rng(seed)
    return rng.binomial(n, rates).tolist(), [n] * len(rates)


def test_likelihood_is_scipys_but_for_the_coefficients():
    k, n = np.array([0.0, 3, 7, 17]), np.array([5.0, 3, 17, 17])
    a, b = 0.7, 2.1
    mean, rho = a / (a + b), 1 / (a + b + 1)
    want = stats.betabinom.logpmf(k, n, a, b) - np.log(stats.binom(n, 1 / 2).pmf(k) * 2**n)
    assert log_likelihood(k, n, mean, rho) == pytest.approx(want.sum())
    flat = stats.binom.logpmf(k, n, mean) - np.log(stats.binom(n, 1 / 2).pmf(k) * 2**n)
    assert log_likelihood(k, n, mean, SMALLEST) == pytest.approx(flat.sum())


def test_the_fit_is_the_best_on_a_grid():
    k, n = cells(np.random.default_rng(5).beta(0.5, 3, 65), 17, 1)
    found = fit(k, n)
    best = log_likelihood(np.array(k, float), np.array(n, float), found.mean, found.rho)
    for mean in np.linspace(0.02, 0.6, 25):
        for rho in np.linspace(0.01, 0.9, 25):
            assert log_likelihood(np.array(k, float), np.array(n, float), mean, rho) <= best + 1e-6
    assert found.mean == pytest.approx(0.5 / 3.5, abs=0.06)
    assert found.rho == pytest.approx(1 / 4.5, abs=0.1)
    assert found.p < 1e-6


def test_equal_cells_are_told_to_be_equal_about_as_often_as_promised():
    p = [fit(*cells([0.1] * 24, 30, seed)).p for seed in range(200)]
    assert np.mean(np.array(p) < 0.05) < 0.1
    best = [luck_of_the_best(*cells([0.1] * 24, 30, seed), seed=seed) for seed in range(200)]
    assert 0.005 < np.mean(np.array(best) < 0.05) < 0.1


def test_one_hot_cell_among_cold_ones_is_no_luck():
    k, n = [20, *[1] * 23], [30] * 24
    assert fit(k, n).p < 1e-6
    assert luck_of_the_best(k, n) < 1e-3


def test_shrinking_pulls_the_best_of_equal_cells_back_and_leaves_a_hot_one():
    k, n = cells([0.1] * 24, 30, 3)
    best = shrunk(max(k), 30, fit(k, n))
    assert best.rate < max(k) / 30 - 0.05
    assert best.low <= 0.11 <= best.high + 0.02
    hot = shrunk(25, 30, fit([25, 24, *[0] * 22], [30] * 24))
    assert hot.rate > 0.75


def test_shrunken_rates_are_nearer_to_the_truth_and_their_intervals_hold():
    gain, held = [], []
    for seed in range(30):
        truth = np.random.default_rng(100 + seed).beta(1, 8, 40)
        k, n = cells(truth, 20, seed)
        mixture = fit(k, n)
        found = [shrunk(a, b, mixture) for a, b in zip(k, n, strict=True)]
        raw = np.mean((np.array(k) / 20 - truth) ** 2)
        gain.append(np.mean([(f.rate - t) ** 2 for f, t in zip(found, truth, strict=True)]) / raw)
        held += [f.low <= t <= f.high for f, t in zip(found, truth, strict=True)]
    assert np.mean(gain) < 0.8
    assert 0.9 < np.mean(held) < 0.99


def test_edges():
    assert fit([0, 0], [5, 9]) == Mixture(0.0, SMALLEST, 1.0)
    assert shrunk(0, 5, fit([0, 0], [5, 9])).high == 0
    assert fit([5, 9], [5, 9]).mean == 1
    assert fit([3, 0], [7, 0]) == fit([3], [7])
    with pytest.raises(UserError, match="no cell has a trial"):
        fit([0], [0])
    with pytest.raises(UserError, match="0 <= events <= trials"):
        fit([3], [2])
