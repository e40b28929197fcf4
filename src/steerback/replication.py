"""Two samples of questions side by side: what was found on the first, and again on the second?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from steerback.stats import MEASURES, Comparison, Mean, Outcome
from steerback.stats.bootstrap import (
    RESAMPLES,
    Floats,
    Seed,
    bootstrap,
    cluster_codes,
    percentile_interval,
    ratio,
    sum_by_cluster,
)

REPLICATES, LIKELY, FAILS, REVERSED, OPEN = (
    "replicates",
    "same sign, interval holds 0",
    "does not replicate",
    "reversed",
    "not settled at first",
)


def verdict(first: Comparison, second: Comparison) -> str:
    """What the second sample says of a difference that the first one found."""
    a, b = first.difference, second.difference
    if not _settled(a):
        return OPEN
    same = a.value * b.value > 0
    if _settled(b):
        return REPLICATES if same else REVERSED
    return LIKELY if same else FAILS


def _settled(estimate: Mean) -> bool:
    """Whether the interval excludes 0."""
    return estimate.low > 0 or estimate.high < 0


def difference(
    a: Sequence[Outcome],
    b: Sequence[Outcome],
    measure: str,
    *,
    n_resamples: int = RESAMPLES,
    seed: Seed = 0,
) -> Mean:
    """Measure of `b` minus that of `a`: other questions, the same directions.

    Trials are not paired, but directions are: each is resampled with its trials of both samples.
    """
    spec = MEASURES[measure]
    both = [*a, *b]
    if not a or not b:
        return Mean(math.nan, math.nan, math.nan, len(both), 0)
    top, bottom = spec.columns(both)
    second = np.arange(len(both)) >= len(a)
    columns = np.stack([c * (second == s) for s in (False, True) for c in (top, bottom)], axis=1)
    codes, n = cluster_codes([o.cluster for o in both])
    sums = sum_by_cluster(codes, n, columns)

    def gap(w: Floats) -> Floats:
        total = w @ sums
        return ratio(total[..., 2], total[..., 3]) - ratio(total[..., 0], total[..., 1])

    value = float(gap(np.ones(n)))
    low, high = percentile_interval(bootstrap(gap, n, n_resamples, seed), n)
    missing = sum(o.missing for o in both)
    return Mean(
        value, min(low, value), max(high, value), len(both), n, missing, "cluster bootstrap"
    )
