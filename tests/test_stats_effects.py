"""Effect sizes and tests against scipy and statsmodels, latent by latent."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from steerback.errors import UserError
from steerback.stats import (
    auc,
    cliffs_delta,
    cohens_d,
    cohens_d_paired,
    effects,
    holm,
    one_sided,
    welch,
    wilcoxon,
)

ALTERNATIVES = ["two-sided", "greater", "less"]


def activations(seed, n, latents, levels=None):
    """Non-negative and sparse, as activations are; `levels` makes ties."""
    x = np.maximum(0, np.random.default_rng(seed).normal(0.3, 1, (n, latents)))
    return x if levels is None else np.round(x * levels) / levels


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 17), (65, 3), (17, 17)])
@pytest.mark.parametrize("levels", [None, 2])
def test_auc_is_mann_whitney_per_latent(n, m, levels):
    x, y = activations(1, n, 5, levels) + 0.2, activations(2, m, 5, levels)
    u = [stats.mannwhitneyu(x[:, k], y[:, k]).statistic / (n * m) for k in range(5)]
    np.testing.assert_allclose(auc(x, y), u)
    pairs = np.sign(x[:, None] - y[None]).mean(axis=(0, 1))
    np.testing.assert_allclose(cliffs_delta(x, y), pairs, atol=1e-12)


def test_auc_in_blocks_and_shapes(monkeypatch):
    x, y = activations(1, 17, 21, 3), activations(2, 9, 21, 3)
    whole = auc(x, y)
    monkeypatch.setattr(effects, "_BLOCK", 26 * 4)
    np.testing.assert_array_equal(auc(x, y), whole)
    np.testing.assert_array_equal(auc(x.reshape(17, 3, 7), y.reshape(9, 3, 7)), whole.reshape(3, 7))
    assert auc(x[:, 0], y[:, 0]) == whole[0]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 999))
@settings(deadline=None)
def test_auc_is_between_0_and_1_and_antisymmetric(n, m, seed):
    x, y = activations(seed, n, 3, 2), activations(seed + 1, m, 3, 2)
    assert ((auc(x, y) >= 0) & (auc(x, y) <= 1)).all()
    np.testing.assert_allclose(auc(x, y) + auc(y, x), 1)


def test_cohens_d_is_statsmodels():
    x, y = activations(1, 17, 4), activations(2, 9, 4) + 0.3
    for k, d in enumerate(cohens_d(x, y)):
        means = CompareMeans(DescrStatsW(x[:, k]), DescrStatsW(y[:, k]))
        sd = means.std_meandiff_pooledvar / np.sqrt(1 / 17 + 1 / 9)
        assert d == pytest.approx((x[:, k].mean() - y[:, k].mean()) / sd)
    d_z = cohens_d_paired(x[:9] - y)
    np.testing.assert_allclose(d_z, stats.ttest_rel(x[:9], y).statistic / 3)


def test_constant_latents_have_no_effect_or_an_infinite_one():
    flat, up = np.zeros((5, 2)), np.array([[0.0, 2.0]] * 5)
    np.testing.assert_array_equal(cohens_d(up, flat), [0, np.inf])
    np.testing.assert_array_equal(cohens_d_paired(flat - up), [0, -np.inf])
    result = welch(up, flat)
    np.testing.assert_array_equal(result.statistic, [0, np.inf])
    np.testing.assert_array_equal(result.p, [1, 0])
    np.testing.assert_array_equal(welch(up, flat, "greater").p, [1, 0])
    np.testing.assert_array_equal(welch(up, flat, "less").p, [1, 1])


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize(("n", "m"), [(3, 17), (65, 9), (2, 2)])
def test_welch_is_scipy(n, m, alternative):
    rng = np.random.default_rng(n)
    x, y = rng.normal(0.2, 1, (n, 6)), rng.normal(0, 3, (m, 6))
    ours = welch(x, y, alternative)
    scipys = stats.ttest_ind(x, y, equal_var=False, alternative=alternative)
    np.testing.assert_allclose(ours.statistic, scipys.statistic)
    np.testing.assert_allclose(ours.df, scipys.df)
    np.testing.assert_allclose(ours.p, scipys.pvalue)


@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_wilcoxon_is_scipy_and_survives_dead_latents(alternative):
    d = np.round(np.random.default_rng(0).normal(0.3, 1, (17, 4)), 1)
    d[:, 2], d[3, 1] = 0, 0
    ours = wilcoxon(d, alternative)
    assert (ours.p[2], ours.df[2]) == (1, 0)
    for k in (0, 1, 3):
        kept = d[d[:, k] != 0, k]
        scipys = stats.wilcoxon(kept, alternative=alternative, method="approx")
        assert (ours.statistic[k], ours.p[k]) == (scipys.statistic, scipys.pvalue)
        assert ours.df[k] == len(kept)
    assert wilcoxon(d[:, 0], alternative).p == ours.p[0]


@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_wilcoxon_of_distinct_differences_is_exact(alternative):
    """All 2**9 signs written out."""
    d = np.array([-1, 2, 3, -4, 5, 6, 7, 8.5, -0.5])
    ranks = stats.rankdata(np.abs(d))
    signs = np.array(np.meshgrid(*[[0, 1]] * 9)).reshape(9, -1)
    null, seen = ranks @ signs, ranks[d > 0].sum()
    tails = (null >= seen).mean(), (null <= seen).mean()
    expected = {"greater": tails[0], "less": tails[1], "two-sided": 2 * min(tails)}
    assert wilcoxon(d, alternative).p == pytest.approx(expected[alternative])


@pytest.mark.parametrize("t", [-2.5, -0.1, 0.0, 0.1, 2.5])
def test_one_sided_is_the_tail_of_its_own_side(t):
    two = 2 * stats.t.sf(abs(t), 9)
    assert one_sided(two, t, "greater") == pytest.approx(stats.t.sf(t, 9))
    assert one_sided(two, t, "less") == pytest.approx(stats.t.cdf(t, 9))
    assert one_sided(two, t, "two-sided") == two


def test_unknown_alternative():
    with pytest.raises(UserError, match="alternative is 'up'; use 'two-sided'"):
        one_sided(0.5, 1.0, "up")


@pytest.mark.parametrize("n", [1, 3, 17, 65])
def test_holm_is_statsmodels(n):
    p = np.round(np.random.default_rng(n).random(n) ** 3, 2)
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1], atol=1e-12)


@pytest.mark.parametrize("side", ["two-sided", "greater", "less"])
def test_paired_t_against_scipy_and_where_nothing_varies(side):
    rng = np.random.default_rng(1)
    x = rng.normal(0.2, 1, (17, 3))
    found = effects.paired_t(x, side)
    want = stats.ttest_1samp(x, 0, alternative=side)
    assert found.statistic == pytest.approx(want.statistic)
    assert found.p == pytest.approx(want.pvalue)
    flat = effects.paired_t(np.array([[0.0, 2.0]] * 3), side)
    assert flat.p.tolist() == [1.0, {"less": 1.0}.get(side, 0.0)]
    assert effects.paired_t([1.0], side).p == 1
