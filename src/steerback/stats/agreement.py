"""How far judges agree beyond chance, with trials of one cluster resampled together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np

from steerback.errors import UserError
from steerback.stats.bootstrap import (
    LEVEL,
    RESAMPLES,
    Floats,
    Mean,
    Seed,
    bootstrap,
    cluster_codes,
    percentile_interval,
    ratio,
    sum_by_cluster,
)


def cohen_kappa(
    a: Sequence[Hashable],
    b: Sequence[Hashable],
    clusters: Sequence[Hashable] | None = None,
    *,
    n_resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: Seed = 0,
) -> Mean:
    """Cohen's (1960) kappa of two raters' labels `a`, `b` [n]. NaN if both always say the same one."""
    _same_length("the two raters", a, b)
    labels = {label: i for i, label in enumerate(dict.fromkeys([*a, *b]))}
    cells = np.zeros((len(a), len(labels), len(labels)))
    rows = [labels[x] for x in a], [labels[y] for y in b]
    cells[np.arange(len(a)), rows[0], rows[1]] = 1

    def kappa(table: Floats) -> Floats:  # [..., K, K] -> [...]
        share = ratio(table, table.sum(axis=(-2, -1), keepdims=True))
        agreed = np.trace(share, axis1=-2, axis2=-1)
        chance = (share.sum(axis=-1) * share.sum(axis=-2)).sum(axis=-1)
        return ratio(agreed - chance, 1 - chance)

    return _with_interval(cells, kappa, clusters, n_resamples, level, seed)


def fleiss_kappa(
    ratings: Sequence[Sequence[Hashable]],
    clusters: Sequence[Hashable] | None = None,
    *,
    n_resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: Seed = 0,
) -> Mean:
    """Fleiss' (1971) kappa of `ratings` [n items][raters]: labels, every item by as many raters.

    NaN if everybody always says the same. Raises UserError on ragged ratings or a single rater.
    """
    raters = len(ratings[0]) if ratings else 0
    if raters < 2 or any(len(row) != raters for row in ratings):
        raise UserError("ratings for Fleiss' kappa: give every item the same 2 or more raters")
    labels = {label: i for i, label in enumerate(dict.fromkeys(x for row in ratings for x in row))}
    counts = np.zeros((len(ratings), len(labels)))
    for item, row in enumerate(ratings):
        np.add.at(counts[item], [labels[x] for x in row], 1)
    agreed = (counts * (counts - 1)).sum(axis=1) / (raters * (raters - 1))
    columns = np.column_stack([counts / raters, agreed, np.ones(len(ratings))])

    def kappa(sums: Floats) -> Floats:  # [..., K + 2] -> [...]
        means = ratio(sums[..., :-1], sums[..., -1:])
        chance = np.square(means[..., :-1]).sum(axis=-1)
        return ratio(means[..., -1] - chance, 1 - chance)

    return _with_interval(columns, kappa, clusters, n_resamples, level, seed)


def correlation(
    a: Floats,
    b: Floats,
    clusters: Sequence[Hashable] | None = None,
    *,
    n_resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: Seed = 0,
) -> Mean:
    """Pearson's correlation of two raters' scores `a`, `b` [n]. NaN if either never varies."""
    _same_length("the two raters", list(a), list(b))
    a, b = a - a.mean(), b - b.mean()  # the sums below lose less to rounding
    columns = np.column_stack([np.ones(len(a)), a, b, a * a, b * b, a * b])

    def pearson(sums: Floats) -> Floats:  # [..., 6] -> [...]
        means = ratio(sums[..., 1:], sums[..., :1])
        spread = means[..., 2:4] - np.square(means[..., :2])
        shared = means[..., 4] - means[..., 0] * means[..., 1]
        return ratio(shared, np.sqrt(np.maximum(spread, 0)).prod(axis=-1))

    return _with_interval(columns, pearson, clusters, n_resamples, level, seed)


def _same_length(what: str, a: Sequence[Hashable], b: Sequence[Hashable]) -> None:
    if len(a) != len(b) or not len(a):
        raise UserError(
            f"{what} have {len(a)} and {len(b)} entries; give one per item, at least one"
        )


def _with_interval(
    values: Floats,
    statistic: Callable[[Floats], Floats],
    clusters: Sequence[Hashable] | None,
    n_resamples: int,
    level: float,
    seed: Seed,
) -> Mean:
    n = len(values)
    clusters = clusters if clusters is not None else [f"{i:09d}" for i in range(n)]
    _same_length("items and clusters", clusters, range(n))
    codes, n_clusters = cluster_codes(clusters)
    sums = sum_by_cluster(codes, n_clusters, values)
    flat = sums.reshape(n_clusters, -1)

    def resampled(counts: Floats) -> Floats:
        return statistic((counts @ flat).reshape(len(counts), *sums.shape[1:]))

    draws = bootstrap(resampled, n_clusters, n_resamples, seed)
    low, high = percentile_interval(draws, n_clusters, level)
    value = float(statistic(sums.sum(axis=0)))
    return Mean(value, min(low, value), max(high, value), n, n_clusters, 0, "cluster bootstrap")
