"""Strength against outcome: one point per direction and strength, and pooled steps over all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from steerback.report.strengths import clustered_mean
from steerback.stats import Mean, Outcome, cluster_rate, wilson

STEPS = 6
"""Pooled steps at most, of about equally many trials ..."""
CLUSTERS = 5
"""... and on average at least so many directions each: fewer tell nothing about others."""
MEASURES = ("multi_attempt", "esr", "first_score")


class Dose(NamedTuple):
    """Outcomes of the trials with strengths from `low` to `high`, on a scale of 100."""

    low: float
    high: float
    direction: str
    n: int
    rates: dict[str, Mean]


def by_direction(outcomes: Sequence[Outcome]) -> list[Dose]:
    """Each direction at each of its strengths; Wilson's interval, since its trials are one cluster."""
    groups: dict[tuple[str, float], list[Outcome]] = {}
    for o in outcomes:
        if o.strength is not None and not o.missing:
            groups.setdefault((o.cluster, o.strength), []).append(o)
    return [
        Dose(s, s, direction, len(group), {m: _within(group, m) for m in MEASURES})
        for (direction, s), group in sorted(groups.items(), key=lambda g: (g[0][1], g[0][0]))
    ]


def pooled(outcomes: Sequence[Outcome]) -> list[Dose]:
    """Trials in order of strength, cut into steps of about equal size; clustered intervals.

    Trials of one strength stay together. No step where there are too few directions for two.
    """
    valid = sorted(
        (o for o in outcomes if o.strength is not None and not o.missing),
        key=lambda o: o.strength or 0.0,
    )
    levels = np.array([o.strength for o in valid], dtype=np.float64)
    steps = min(STEPS, len({o.cluster for o in valid}) // CLUSTERS)
    if len(np.unique(levels)) < 2 or steps < 2:
        return []
    edges = np.unique(np.quantile(levels, np.linspace(0, 1, steps + 1)))
    step = np.clip(np.searchsorted(edges, levels, side="right") - 1, 0, len(edges) - 2)
    found = []
    for n in range(len(edges) - 1):
        group = [o for o, s in zip(valid, step, strict=True) if s == n]
        if group:
            rates = {m: _between(group, m) for m in MEASURES}
            found.append(Dose(float(edges[n]), float(edges[n + 1]), "", len(group), rates))
    return found


def _within(group: Sequence[Outcome], measure: str) -> Mean:
    if measure == "first_score":
        firsts = [o.first for o in group if o.first is not None]
        return clustered_mean(firsts, [o.trial_key for o in group])
    k, n = sum(bool(getattr(o, _FIELD[measure])) for o in group), len(group)
    low, high = wilson(k, n)
    return Mean(100 * k / n, 100 * low, 100 * high, n, 1, method="Wilson")


def _between(group: Sequence[Outcome], measure: str) -> Mean:
    clusters = [o.cluster for o in group]
    if measure == "first_score":
        return clustered_mean([o.first for o in group if o.first is not None], clusters)
    rate = cluster_rate([bool(getattr(o, _FIELD[measure])) for o in group], clusters)
    return Mean(
        100 * rate.rate, 100 * rate.low, 100 * rate.high, rate.n, rate.clusters, method=rate.method
    )


_FIELD = {"multi_attempt": "multi", "esr": "esr"}
