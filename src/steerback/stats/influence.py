"""A floor for intervals of estimates that are no counts, from what each trial adds to an estimate.

A cluster bootstrap never leaves the range of the clusters' own means, which misses the truth in 2 of 2^C
samples, one in eight of 4 clusters; and where those means happen to lie together its interval has hardly
any width, though the trials in them differ. With few clusters none is made shorter than the t interval
over clusters, with a variance of at least what it would be if the trials were independent (as for rates,
whose design effect is at least 1).

An influence is the change of an estimate per unit weight of one trial, times n, to first order; it sums
to 0 (Hampel 1974, JASA 69:383). Its sums over clusters give the linearised variance (Kish 1965).
"""

from __future__ import annotations

import math

import numpy as np

from steerback.stats.bootstrap import LEVEL, Floats, Ints, critical, sum_by_cluster

Interval = tuple[float, float]

FEW_CLUSTERS = 12
"""Fewer than these. From here on the bootstrap's range misses in less than one of 2,000 samples, and its
intervals stand as they are."""


def of_ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Influence [n] on sum(numerator) / sum(denominator), whose sum is not 0."""
    total = denominator.sum()
    return np.asarray(len(numerator) * (numerator - numerator.sum() / total * denominator) / total)


def of_chance(first: Floats, multi: Floats) -> Floats:
    """Influence [n] on multi-attempt rate x chance level over all other trials (see `chance`).

    That is the mean over ordered pairs of "i restarted, and j begins above it": a trial adds to it as
    i and as j.
    """
    n = len(first)
    ranked, restarted = np.sort(first), np.sort(first[multi > 0])
    above = multi * (n - np.searchsorted(ranked, first, side="right")) / max(n - 1, 1)
    beaten = np.searchsorted(restarted, first, side="left") / max(n - 1, 1)
    return np.asarray(above + beaten - 2 * above.mean())


def at_least_t(
    interval: Interval,
    value: float,
    influence: Floats,
    codes: Ints,
    support: tuple[int, int],
    *,
    level: float = LEVEL,
    bounds: Interval = (-math.inf, math.inf),
) -> Interval:
    """`interval`, widened to hold the t interval with clusters - 1 degrees of freedom.

    `codes` [n]: cluster of each trial; `support`: trials and clusters that the estimate rests on;
    `bounds`: what it cannot be beyond. Unchanged with one cluster or trial, with many clusters, and
    where an influence is not known.
    """
    n, clusters = support
    if n < 2 or not 1 < clusters < FEW_CLUSTERS or not np.isfinite([value, *influence]).all():
        return interval
    sums = sum_by_cluster(codes, int(codes.max()) + 1, influence)
    squares = max(
        n / (n - 1) * np.square(influence).sum(), clusters / (clusters - 1) * np.square(sums).sum()
    )
    half = critical(clusters, level) * math.sqrt(squares) / len(influence)
    low, high = max(bounds[0], value - half), min(bounds[1], value + half)
    return min(interval[0], low), max(interval[1], high)
