"""Intervals of a proportion: Wilson's, and Wilson's with clusters taken into account."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from scipy import special

from steerback.stats.bootstrap import (
    LEVEL,
    RESAMPLES,
    Floats,
    Seed,
    bootstrap,
    cluster_codes,
    critical,
    percentile_interval,
    ratio,
    sum_by_cluster,
)
from steerback.types import Rate

ASSUMED_ICC = 0.1
"""Intraclass correlation assumed where too few events are seen to estimate it."""
PRIOR_EVENTS = 10.0
"""Events at which the data weigh as much as the assumption."""


def wilson(k: float, n: float, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's (1927) score interval, trials taken as independent. (nan, nan) if n is 0."""
    return _score_interval(k / n, n, float(special.ndtri(0.5 + level / 2))) if n else _NOTHING


_NOTHING = (math.nan, math.nan)


def _score_interval(p: float, n: float, z: float) -> tuple[float, float]:
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = ((centre + s * half) / (1 + z * z / n) for s in (-1, 1))
    # Rounding must not push the interval past the estimate at 0 and 1.
    return max(0.0, min(low, p)), min(1.0, max(high, p))


def design_effect(successes: Floats, sizes: Floats) -> float:
    """How many times larger the variance of the rate is than with independent trials; at least 1.

    `successes`, `sizes`: [clusters]. The linearised variance of a ratio over clusters, divided by
    p(1-p)/n (Kish 1965). With k events (or non-events, whichever are fewer) the estimate is worth
    little when k is small, and nothing at k = 0: it is averaged, with weight k / (k + 10), with the
    effect that an intraclass correlation of 0.1 would have at these cluster sizes.
    """
    clusters, n, k = len(sizes), sizes.sum(), successes.sum()
    assumed = 1 + (np.square(sizes).sum() / n - 1) * ASSUMED_ICC
    p = k / n
    if k in (0, n):
        return float(assumed)
    variance = clusters / (clusters - 1) * np.square(successes - p * sizes).sum() / n**2
    seen = max(1.0, variance / (p * (1 - p) / n))
    events = min(k, n - k)
    weight = events / (events + PRIOR_EVENTS)
    return float(weight * seen + (1 - weight) * assumed)


def clustered_wilson(successes: Floats, sizes: Floats, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's interval at the effective sample size, t quantile with clusters - 1 degrees of freedom.

    `successes`, `sizes`: [clusters], clusters of size 0 allowed. The idea is that of Korn and Graubard
    (1998, Surv. Methodol. 24:193) with Wilson's interval in place of Clopper and Pearson's (as in Dean
    and Pagano 2015, J. Surv. Stat. Methodol. 3:484). It is the default because it covers where
    the percentile bootstrap does not (few clusters, few events, no event). One cluster tells nothing
    about the others: [0, 1].
    """
    used = sizes > 0
    successes, sizes = successes[used], sizes[used]
    if sizes.size == 0:
        return _NOTHING
    if sizes.size == 1:
        return 0.0, 1.0
    n = float(sizes.sum())
    effective = n / design_effect(successes, sizes)
    return _score_interval(float(successes.sum()) / n, effective, critical(sizes.size, level))


def cluster_rate(
    success: Sequence[bool] | Floats,
    clusters: Sequence[Hashable],
    missing: int = 0,
    level: float = LEVEL,
) -> Rate:
    """The rate of `success` [n] with its clustered Wilson interval; `clusters` [n]."""
    codes, n_clusters = cluster_codes(clusters)
    values = np.asarray(success, dtype=np.float64)
    sums = sum_by_cluster(codes, n_clusters, values)
    sizes = sum_by_cluster(codes, n_clusters, np.ones_like(values))
    return rate_from_sums(sums, sizes, missing, level)


def rate_from_sums(successes: Floats, sizes: Floats, missing: int, level: float = LEVEL) -> Rate:
    """`successes`, `sizes`: [clusters]."""
    low, high = clustered_wilson(successes, sizes, level)
    k, n = round(float(successes.sum())), round(float(sizes.sum()))
    return Rate(k, n, int((sizes > 0).sum()), missing, low, high, "clustered Wilson")


def bootstrap_rate(
    success: Sequence[bool] | Floats,
    clusters: Sequence[Hashable],
    *,
    missing: int = 0,
    n_resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: Seed = 0,
) -> Rate:
    """The rate of `success` [n] with the expanded percentile interval of the cluster bootstrap.

    For comparison: at few events it covers too rarely, and at none it is [0, 0].
    """
    codes, n_clusters = cluster_codes(clusters)
    values = np.asarray(success, dtype=np.float64)
    sums = sum_by_cluster(codes, n_clusters, values)
    sizes = sum_by_cluster(codes, n_clusters, np.ones_like(values))
    low, high = _NOTHING
    if n_clusters:
        draws = bootstrap(lambda w: ratio(w @ sums, w @ sizes), n_clusters, n_resamples, seed)
        low, high = percentile_interval(draws, n_clusters, level)
    k = round(float(sums.sum()))
    return Rate(k, len(values), n_clusters, missing, low, high, "cluster bootstrap")
