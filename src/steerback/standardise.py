"""Two arms compared at equal first score: an arm whose answers begin better has less to restart from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from steerback.stats import Mean, Outcome
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

BINS = 5


def difference_at_equal_first_score(
    a: Sequence[Outcome],
    b: Sequence[Outcome],
    *,
    bins: int = BINS,
    n_resamples: int = RESAMPLES,
    seed: Seed = 0,
) -> Mean:
    """Multi-attempt rate of b minus that of a, directly standardised to one mix of first scores.

    First scores of both arms are cut into `bins` quantile groups; within each group the rates are
    subtracted, and the differences averaged with the group's share of all trials. A group that only
    one arm has does not count. Whole clusters are resampled, in both arms at once.
    """
    arms = [[o for o in arm if not o.missing] for arm in (a, b)]
    both = [*arms[0], *arms[1]]
    if not arms[0] or not arms[1]:
        return Mean(math.nan, math.nan, math.nan, 0, 0)
    first = np.array([o.first for o in both], np.float64)
    edges = np.unique(np.quantile(first, np.linspace(0, 1, bins + 1)[1:-1]))
    group = np.searchsorted(edges, first, side="right")
    arm = np.repeat([0, 1], [len(arms[0]), len(arms[1])])
    cells = np.zeros((len(both), 2, len(edges) + 1, 2))
    cells[np.arange(len(both)), arm, group, 0] = [bool(o.multi) for o in both]
    cells[np.arange(len(both)), arm, group, 1] = 1
    codes, n_clusters = cluster_codes([o.cluster for o in both])
    sums = sum_by_cluster(codes, n_clusters, cells)

    def statistic(counts: Floats) -> Floats:
        return _standardised(np.tensordot(counts, sums, axes=1))

    value = float(statistic(np.ones((1, n_clusters)))[0])
    low, high = percentile_interval(bootstrap(statistic, n_clusters, n_resamples, seed), n_clusters)
    method = f"cluster bootstrap, standardised over {len(edges) + 1} groups of first scores"
    return Mean(value, min(low, value), max(high, value), len(both), n_clusters, method=method)


def _standardised(totals: Floats) -> Floats:
    """[resamples, arms, groups, (restarts, trials)] -> [resamples]"""
    trials = totals[..., 1]
    rates = ratio(totals[..., 0], trials)
    shared = (trials > 0).all(axis=1)
    weight = np.where(shared, trials.sum(axis=1), 0.0)
    gap = np.where(shared, rates[:, 1] - rates[:, 0], 0.0)
    return ratio((weight * gap).sum(axis=1), weight.sum(axis=1))
