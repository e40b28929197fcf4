"""Power against a textbook formula, against data simulated another way, and at its edges."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import proportion_effectsize

from steerback.errors import UserError
from steerback.stats import power
from steerback.stats.power import _beta_quantiles, _differences


def test_independent_trials_have_the_textbook_power():
    ours = power(0.3, 0.4, latents=[300], prompts=[1], icc=0, pair_correlation=0, n_sims=4000)
    effect = proportion_effectsize(0.4, 0.3)
    theirs = NormalIndPower().power(effect, nobs1=300, alpha=0.05)
    assert ours.grid[0].power == pytest.approx(theirs, abs=0.025)


def test_no_change_is_found_as_often_as_alpha():
    for design in power(0.1, 0.1, latents=[50, 200], prompts=[5], n_sims=4000).grid:
        assert design.power == pytest.approx(0.05, abs=0.015)


def test_power_equals_a_trial_by_trial_simulation():
    """Latents from scipy's Beta at a shared quantile, pairs from a 2 x 2 table, t test by scipy."""
    rng = np.random.default_rng(0)
    clusters, prompts, correlation, icc, hits = 60, 4, 0.3, 0.1, 0
    size = (1 - icc) / icc
    for _ in range(600):
        u = rng.random(clusters)
        a, b = (stats.beta.ppf(u, r * size, (1 - r) * size) for r in (0.3, 0.2))
        both = np.minimum(
            a * b + correlation * np.sqrt(a * (1 - a) * b * (1 - b)), np.minimum(a, b)
        )
        draw = rng.random((prompts, clusters))
        only_b = (draw >= both) & (draw < b)
        only_a = (draw >= b) & (draw < b + a - both)
        hits += stats.ttest_1samp((only_b * 1.0 - only_a).sum(axis=0), 0).pvalue < 0.05
    ours = power(0.3, 0.2, latents=[clusters], prompts=[prompts], n_sims=4000)
    assert ours.grid[0].power == pytest.approx(hits / 600, abs=0.06)


def test_simulated_data_have_the_moments_asked_for():
    quantiles = _beta_quantiles(0.3, 0.1), _beta_quantiles(0.2, 0.1)
    rng = np.random.default_rng(1)
    d = _differences((400, 500), 1, quantiles, 0.3, rng)
    assert d.mean() == pytest.approx(-0.1, abs=0.005)
    assert quantiles[0].mean() == pytest.approx(0.3)
    assert quantiles[0].var() / (0.3 * 0.7) == pytest.approx(0.1, abs=0.002)
    a, b = quantiles
    both = a * b + 0.3 * np.sqrt(a * (1 - a) * b * (1 - b))
    both = np.minimum(both, np.minimum(a, b))
    assert (d != 0).mean() == pytest.approx((a + b - 2 * both).mean(), abs=0.005)


@pytest.mark.parametrize("correlation", [-1.0, 1.0])
@pytest.mark.parametrize("rates", [(0.02, 0.9), (0.5, 0.5), (0.97, 0.1)])
def test_impossible_correlations_are_cut(correlation, rates):
    quantiles = tuple(_beta_quantiles(r, 0.5) for r in rates)
    d = _differences((50, 40), 7, quantiles, correlation, np.random.default_rng(0))
    assert (np.abs(d) <= 7).all()
    assert d.mean() / 7 == pytest.approx(rates[1] - rates[0], abs=0.05)


def test_smallest_design_and_monotone_power():
    p = power(0.1, 0.2, latents=[25, 50, 100, 400], prompts=[1, 2, 5], n_sims=600)
    by_latents = [d.power for d in p.grid if d.prompts == 5]
    assert by_latents == sorted(by_latents)
    assert p.smallest in p.grid
    assert p.smallest.power >= 0.8
    assert all(d.power < 0.8 for d in p.grid if d.trials < p.smallest.trials)
    assert all(d.low <= d.power <= d.high for d in p.grid)
    assert power(0.1, 0.11, latents=[10], prompts=[1], n_sims=50).smallest is None
    assert p == power(0.1, 0.2, latents=[25, 50, 100, 400], prompts=[1, 2, 5], n_sims=600)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"rate_a": 0}, "rate_a is 0; it must be between 0 and 1"),
        ({"rate_b": 1.5}, "rate_b is 1.5"),
        ({"latents": [1]}, "2 or more each"),
        ({"prompts": []}, "prompts is"),
        ({"icc": 1}, r"icc is 1; it must be in \[0, 1\)"),
        ({"pair_correlation": 2}, "pair_correlation is 2"),
        ({"alpha": 0}, "alpha is 0"),
        ({"target": 1}, "target is 1"),
        ({"n_sims": 0}, "n_sims is 0"),
    ],
)
def test_bad_settings_are_named(bad, message):
    with pytest.raises(UserError, match=message):
        power(**{"rate_a": 0.1, "rate_b": 0.2, **bad})


def test_at_equal_cost_more_latents_come_first():
    p = power(0.3, 0.6, latents=[40, 80], prompts=[1, 2], n_sims=300, target=0.96)
    assert [d.power >= 0.96 for d in p.grid] == [False, True, True, True]
    assert (p.smallest.latents, p.smallest.prompts) == (80, 1)
