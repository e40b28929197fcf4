"""Means of continuous values over trials that share a direction, and tests over directions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from steerback.stats import Mean
from steerback.stats.bootstrap import (
    RESAMPLES,
    Seed,
    bootstrap,
    cluster_codes,
    percentile_interval,
    ratio,
    sum_by_cluster,
)
from steerback.stats.influence import at_least_t

Floats = NDArray[np.float64]


def cluster_mean(
    values: Floats, clusters: Sequence[str], *, n_resamples: int = RESAMPLES, seed: Seed = 0
) -> Mean:
    """Mean of `values` [n] with the interval of the cluster bootstrap; NaN values are missing."""
    known = ~np.isnan(values)
    names = [c for c, yes in zip(clusters, known, strict=True) if yes]
    missing = len(values) - len(names)
    if not names:
        return Mean(math.nan, math.nan, math.nan, 0, 0, missing)
    codes, n = cluster_codes(names)
    sums = sum_by_cluster(codes, n, np.stack([values[known], np.ones(len(names))], axis=1))
    draws = bootstrap(lambda w: ratio(*np.moveaxis(w @ sums, 1, 0)), n, n_resamples, seed)
    value = float(values[known].mean())
    low, high = percentile_interval(draws, n)
    low, high = min(low, value), max(high, value)
    low, high = at_least_t((low, high), value, values[known] - value, codes, (len(names), n))
    return Mean(value, low, high, len(names), n, missing, "cluster bootstrap")


def per_cluster(values: Floats, clusters: Sequence[str]) -> Floats:
    """Mean of each cluster, by sorted name; NaN values are left out, as are clusters of nothing else."""
    known = ~np.isnan(values)
    names = [c for c, yes in zip(clusters, known, strict=True) if yes]
    codes, n = cluster_codes(names)
    sums = sum_by_cluster(codes, n, np.stack([values[known], np.ones(len(names))], axis=1))
    return np.asarray(sums[:, 0] / sums[:, 1])
