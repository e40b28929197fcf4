"""Effect sizes and tests over many latents at once: samples in rows, latents in the other axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from steerback.errors import UserError

Floats = NDArray[np.float64]
Alternative = Literal["two-sided", "greater", "less"]
_BLOCK = 1 << 22
"""Values ranked at a time: ranking copies its input several times over."""


@dataclass(frozen=True)
class TestResult:
    """One value per latent (or 0-d). Where there is nothing to test, p is 1."""

    __test__ = False  # not a test case, whatever pytest makes of the name
    statistic: Floats
    df: Floats
    """Degrees of freedom; for Wilcoxon, the number of differences that are not 0."""
    p: Floats


def auc(x: ArrayLike, y: ArrayLike) -> Floats:
    """P(x > y) + P(x = y) / 2 for x [n, ...] and y [m, ...]: the area under the ROC curve [...].

    From mid-ranks (Mann and Whitney 1947), in blocks of latents.
    """
    x, y = np.asarray(x), np.asarray(y)
    n, m = len(x), len(y)
    shape, x, y = x.shape[1:], x.reshape(n, -1), y.reshape(m, -1)
    area = np.empty(x.shape[1])
    width = max(1, _BLOCK // (n + m))
    for start in range(0, x.shape[1], width):
        block = slice(start, start + width)
        ranks = stats.rankdata(np.concatenate([x[:, block], y[:, block]]), axis=0)
        area[block] = (ranks[:n].sum(axis=0) - n * (n + 1) / 2) / (n * m)
    return area.reshape(shape)


def cliffs_delta(x: ArrayLike, y: ArrayLike) -> Floats:
    """P(x > y) - P(x < y) (Cliff 1993), in [-1, 1]; x [n, ...], y [m, ...] -> [...]."""
    return 2 * auc(x, y) - 1


def cohens_d(x: ArrayLike, y: ArrayLike) -> Floats:
    """(mean x - mean y) / pooled sd (Cohen 1988); x [n, ...], y [m, ...] -> [...].

    0 where both are constant and equal, infinite where both are constant and differ.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    n, m = len(x), len(y)
    pooled = ((n - 1) * x.var(axis=0, ddof=1) + (m - 1) * y.var(axis=0, ddof=1)) / (n + m - 2)
    return _over(x.mean(axis=0) - y.mean(axis=0), np.sqrt(pooled))


def cohens_d_paired(difference: ArrayLike) -> Floats:
    """Mean over sd of the differences [n, ...] (Cohen's d_z) -> [...]."""
    difference = np.asarray(difference, np.float64)
    return _over(difference.mean(axis=0), difference.std(axis=0, ddof=1))


def _over(top: Floats, spread: Floats) -> Floats:
    """top / spread, with 0/0 = 0: no difference is no effect."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(top == 0, 0.0, top / spread)


def welch(x: ArrayLike, y: ArrayLike, alternative: Alternative = "two-sided") -> TestResult:
    """Welch's (1947) t test of mean x = mean y; x [n, ...], y [m, ...]. "greater": x above y.

    Where neither varies: p = 1 at equal means; at different ones t is infinite and df 0.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    vx, vy = x.var(axis=0, ddof=1) / len(x), y.var(axis=0, ddof=1) / len(y)
    t = _over(x.mean(axis=0) - y.mean(axis=0), np.sqrt(vx + vy))
    spread = vx**2 / (len(x) - 1) + vy**2 / (len(y) - 1)
    constant = spread == 0
    df = np.where(constant, 0.0, (vx + vy) ** 2 / np.where(constant, 1.0, spread))
    p_two = np.where(t == 0, 1.0, 2 * special.stdtr(np.where(constant, 1.0, df), -np.abs(t)))
    nothing = constant & (t == 0)
    return TestResult(t, df, np.where(nothing, 1.0, one_sided(p_two, t, alternative)))


def paired_t(difference: ArrayLike, alternative: Alternative = "two-sided") -> TestResult:
    """Student's (1908) t test that the mean of differences [n, ...] is 0. "greater": above 0.

    Where they do not vary: p = 1 at 0, else t is infinite. With fewer than two, p = 1.
    """
    difference = np.asarray(difference, np.float64)
    n = len(difference)
    if n < 2:
        nothing = np.zeros(difference.shape[1:])
        return TestResult(nothing, nothing, nothing + 1)
    t = _over(difference.mean(axis=0), difference.std(axis=0, ddof=1) / np.sqrt(n))
    p = one_sided(2 * special.stdtr(n - 1, -np.abs(t)), t, alternative)
    return TestResult(t, np.full(t.shape, n - 1.0), np.where(t == 0, 1.0, p))


def one_sided(p_two: ArrayLike, statistic: ArrayLike, alternative: Alternative) -> Floats:
    """The p value of `alternative` from a two-sided one of a statistic symmetric about 0.

    Half of it if the statistic points the way of the alternative, else 1 minus half of it: halving
    whatever the sign would call an effect in the wrong direction significant.
    """
    p, t = np.asarray(p_two, np.float64), np.asarray(statistic, np.float64)
    if alternative == "two-sided":
        return p
    if alternative not in ("greater", "less"):
        raise UserError(f"alternative is {alternative!r}; use 'two-sided', 'greater' or 'less'")
    with_it = t >= 0 if alternative == "greater" else t <= 0
    return np.where(with_it, p / 2, 1 - p / 2)


def wilcoxon(difference: ArrayLike, alternative: Alternative = "two-sided") -> TestResult:
    """Wilcoxon's (1945) signed-rank test that differences [n, ...] are symmetric about 0.

    Zeros are left out, as he did; p = 1 where nothing else is left. "greater": above 0. The p value is
    exact for up to 50 differences of distinct size, else from the normal approximation with ties.
    """
    difference = np.asarray(difference, np.float64)
    used = (difference != 0).sum(axis=0)
    columns = difference.reshape(len(difference), -1).T
    results = [_signed_rank(column[column != 0], alternative) for column in columns]
    statistic, p = (np.array(v).reshape(difference.shape[1:]) for v in zip(*results, strict=True))
    return TestResult(statistic, np.asarray(used, np.float64), p)


def _signed_rank(values: Floats, alternative: Alternative) -> tuple[float, float]:
    if values.size == 0:
        return 0.0, 1.0
    # Stated rather than left to scipy, whose automatic choice differs between its versions.
    exact = len(values) <= 50 and len(np.unique(np.abs(values))) == len(values)
    method: Literal["exact", "approx"] = "exact" if exact else "approx"
    result = stats.wilcoxon(values, alternative=alternative, method=method)
    return float(result.statistic), float(result.pvalue)


def holm(p: ArrayLike) -> Floats:
    """Holm's (1979) adjusted p values [m], in the order given: family-wise error, any dependence."""
    p = np.asarray(p, np.float64)
    order = np.argsort(p, kind="stable")
    scaled = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return adjusted
