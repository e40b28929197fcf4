"""Kappas against statsmodels, their intervals against resampling items one by one."""

import math

import numpy as np
import pytest
from statsmodels.stats.inter_rater import aggregate_raters
from statsmodels.stats.inter_rater import cohens_kappa as sm_cohen
from statsmodels.stats.inter_rater import fleiss_kappa as sm_fleiss

from steerback.errors import UserError
from steerback.stats import cohen_kappa, fleiss_kappa


def ratings(n, raters, labels=3, agree=0.6, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, labels, (n, 1))
    return np.where(rng.random((n, raters)) < agree, truth, rng.integers(0, labels, (n, raters)))


def table(a, b):
    cells = np.zeros((3, 3))
    np.add.at(cells, (a, b), 1)
    return cells


@pytest.mark.parametrize("n", [17, 65, 300])
def test_cohen_is_statsmodels(n):
    a, b = ratings(n, 2).T
    kappa = cohen_kappa(list(a), list(b))
    theirs = sm_cohen(table(a, b))
    assert kappa.value == pytest.approx(theirs.kappa)
    assert kappa.low <= kappa.value <= kappa.high
    assert (kappa.n, kappa.clusters) == (n, n)
    if n == 300:
        asymptotic = np.array([theirs.kappa_low, theirs.kappa_upp])
        np.testing.assert_allclose((kappa.low, kappa.high), asymptotic, atol=0.02)


@pytest.mark.parametrize("raters", [2, 3, 5])
@pytest.mark.parametrize("n", [3, 17, 65])
def test_fleiss_is_statsmodels(n, raters):
    r = ratings(n, raters)
    counts, _ = aggregate_raters(r, n_cat=3)
    assert fleiss_kappa(r.tolist()).value == pytest.approx(sm_fleiss(counts))


def test_clusters_are_resampled_whole():
    """Ten copies of each item, one cluster: the interval must not shrink."""
    a, b = (list(x) for x in ratings(40, 2).T)
    alone = cohen_kappa(a, b)
    copied = cohen_kappa(a * 10, b * 10, [f"{i:09d}" for i in range(40)] * 10)
    assert copied.value == pytest.approx(alone.value)
    assert (copied.low, copied.high) == (pytest.approx(alone.low), pytest.approx(alone.high))
    many = fleiss_kappa(ratings(40, 3).tolist() * 10, list(range(40)) * 10)
    few = fleiss_kappa(ratings(40, 3).tolist() * 10)
    assert many.high - many.low > 2 * (few.high - few.low)


def test_one_label_throughout_says_nothing():
    assert math.isnan(cohen_kappa([True] * 5, [True] * 5).value)
    assert math.isnan(fleiss_kappa([["a", "a"]] * 5).value)
    assert cohen_kappa(["a", "b"] * 9, ["a", "b"] * 9).value == 1


def test_errors():
    with pytest.raises(UserError, match="have 1 and 2 entries"):
        cohen_kappa(["a"], ["a", "b"])
    with pytest.raises(UserError, match="items and clusters"):
        cohen_kappa(["a", "b"], ["a", "b"], ["c"])
    with pytest.raises(UserError, match="the same 2 or more raters"):
        fleiss_kappa([["a", "b"], ["a"]])
    with pytest.raises(UserError, match="the same 2 or more raters"):
        fleiss_kappa([])
