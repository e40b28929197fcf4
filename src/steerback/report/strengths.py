"""What calibration found for each direction, and how near to its target it came on fresh prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from steerback.records import Records
from steerback.stats import Mean, wilson
from steerback.stats.bootstrap import (
    LEVEL,
    RESAMPLES,
    bootstrap,
    cluster_codes,
    percentile_interval,
    ratio,
    sum_by_cluster,
)
from steerback.store import Store
from steerback.types import CALIBRATION, Calibration, Rate

CLOSE = 8.0
"""Points around the target within which a calibration counts as close."""


@dataclass(frozen=True)
class Strength:
    """One direction's calibration."""

    calibration: Calibration
    label: str
    achieved: Mean | None
    """First-attempt score on fresh prompts, questions resampled; None where it was not measured."""
    reason: str
    """Why the direction is left out; empty if it is not."""

    @property
    def value(self) -> float:
        return self.calibration.strength


def strengths(store: Store, records: Records, labels: Mapping[str, str]) -> Iterator[Strength]:
    """Directions in order of what they achieved, those left out last."""
    reasons = store.get_artifact("calibration_failures", {})
    fresh = _fresh_scores(records)
    found = [c for c, _ in store.calibrations()]
    for c in sorted(found, key=lambda c: (not c.reached, c.achieved or 0.0, c.direction)):
        reason = "" if c.reached else reasons.get(c.direction, "the target was not reached")
        trials = fresh.get((c.direction, c.strength), [])
        yield Strength(c, labels.get(c.direction, ""), _achieved(c, trials), reason)


def _fresh_scores(records: Records) -> dict[tuple[str, float], list[tuple[str, float]]]:
    """(direction, strength) -> (question, first-attempt score) of the trials that verified it."""
    found: dict[tuple[str, float], list[tuple[str, float]]] = {}
    for record in records.of(CALIBRATION, "fresh"):
        add, first = record.trial.steered_by, record.outcome.first
        if add is not None and first is not None:
            key = f"{add.source}:{add.index}", add.value
            found.setdefault(key, []).append((record.trial.question, first))
    return found


def _achieved(c: Calibration, trials: Sequence[tuple[str, float]]) -> Mean | None:
    if c.achieved is None:
        return None
    if not trials:  # judged by another judge, or the trials are gone: the stored mean alone
        return Mean(c.achieved, c.achieved, c.achieved, c.n, 0, method="mean without interval")
    mean = clustered_mean([s for _, s in trials], [q for q, _ in trials])
    return replace(mean, value=c.achieved)


def clustered_mean(scores: Sequence[float], clusters: Sequence[str]) -> Mean:
    """Mean of scores (0-100) with the cluster bootstrap's interval; one cluster tells nothing."""
    codes, n = cluster_codes(clusters)
    sums = sum_by_cluster(codes, n, np.asarray(scores, np.float64))
    sizes = np.bincount(codes, minlength=n).astype(np.float64)
    value = float(sums.sum() / sizes.sum())
    draws = bootstrap(lambda w: ratio(w @ sums, w @ sizes), n, RESAMPLES, seed=0)
    low, high = percentile_interval(draws, n, LEVEL) if n > 1 else (0.0, 100.0)
    return Mean(value, max(0.0, low), min(100.0, high), len(scores), n, method="cluster bootstrap")


def share_close(found: Sequence[Strength], target: float, margin: float = CLOSE) -> Rate:
    """Share of all directions whose achieved score is within `margin` of the target (Wilson); one
    that was left out is not."""
    close = [
        s.achieved is not None
        and s.calibration.reached
        and abs(s.achieved.value - target) <= margin
        for s in found
    ]
    k, n = sum(close), len(close)
    low, high = wilson(k, n)
    return Rate(k, n, n, 0, low, high, "Wilson")
