"""Dose and response of one direction: a monotone fit of score against strength, and its ED50."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from steerback.errors import UserError
from steerback.stats.bootstrap import (
    LEVEL,
    RESAMPLES,
    Floats,
    Ints,
    Seed,
    bootstrap,
    cluster_codes,
    percentile_interval,
    ratio,
    sum_by_cluster,
)


@dataclass(frozen=True)
class DoseResponse:
    """Scores fall with strength; levels are the distinct strengths, ascending."""

    strength: tuple[float, ...]
    n: tuple[int, ...]
    """Trials at each level."""
    mean: tuple[float, ...]
    fitted: tuple[float, ...]
    """Least-squares fit that never rises."""
    level: float
    """Score at which ED50 is read off."""
    ed50: float
    """Strength at which the fit falls to `level`; -inf if it starts below, inf if it never falls."""
    low: float
    high: float
    reached: float
    """Share of resamples whose fit falls to the level inside the range."""


def dose_response(
    strength: Sequence[float],
    score: Sequence[float],
    group: Sequence[Hashable],
    *,
    level: float | None = None,
    n_resamples: int = RESAMPLES,
    confidence: float = LEVEL,
    seed: Seed = 0,
) -> DoseResponse:
    """Fit one direction; `strength`, `score`, `group` [n], groups (questions) resampled whole.

    `level` None: half way between the fit at the lowest and at the highest strength (the classical
    half-maximal dose), found anew in each resample; a number: that score. Raises UserError with
    fewer than two strengths.
    """
    if not len(strength) == len(score) == len(group):
        raise UserError(
            f"dose response: {len(strength)} strengths, {len(score)} scores and {len(group)} groups; "
            "give one of each per trial"
        )
    doses, which = np.unique(np.asarray(strength, np.float64), return_inverse=True)
    if len(doses) < 2:
        raise UserError("dose response: all trials have one strength; give two or more")
    codes, n_groups = cluster_codes(group)
    sums, counts = _by_group(codes, n_groups, which, len(doses), np.asarray(score, np.float64))
    mean = sums.sum(axis=0) / counts.sum(axis=0)
    fitted = falling_fit(mean[None], counts.sum(axis=0)[None])
    at = (fitted[0, 0] + fitted[0, -1]) / 2 if level is None else level

    def resampled(w: Floats) -> Floats:
        n = w @ counts
        return ed50(doses, falling_fit(ratio(w @ sums, n), n), level)

    draws = bootstrap(resampled, n_groups, n_resamples, seed)
    low, high = percentile_interval(draws, n_groups, confidence)
    value = float(ed50(doses, fitted, level)[0])
    return DoseResponse(
        strength=tuple(doses.tolist()),
        n=tuple(counts.sum(axis=0).astype(int).tolist()),
        mean=tuple(mean.tolist()),
        fitted=tuple(fitted[0].tolist()),
        level=float(at),
        ed50=value,
        low=min(low, value) if not math.isnan(low) else low,
        high=max(high, value) if not math.isnan(high) else high,
        reached=float(np.isfinite(draws).mean()),
    )


def _by_group(
    codes: Ints, n_groups: int, which: Ints, n_doses: int, score: Floats
) -> tuple[Floats, Floats]:
    """Sum of scores and count of trials, each [groups, doses]."""
    cell = codes * n_doses + which
    sums = sum_by_cluster(cell, n_groups * n_doses, score)
    counts = sum_by_cluster(cell, n_groups * n_doses, np.ones_like(score))
    return sums.reshape(n_groups, n_doses), counts.reshape(n_groups, n_doses)


def falling_fit(mean: Floats, weight: Floats) -> Floats:
    """Weighted least-squares fit that never rises; `mean`, `weight` [b, levels] -> [b, levels].

    Max-min formula (Robertson, Wright and Dykstra 1988, theorem 1.4.4): at level i, the smallest over
    j <= i of the largest over k >= i of the weighted mean of levels j..k. Levels squared, but for all
    rows at once. A level without weight takes the value of its neighbours.
    """
    levels = mean.shape[1]
    top = np.cumsum(np.pad(np.where(weight > 0, mean, 0.0) * weight, ((0, 0), (1, 0))), axis=1)
    bottom = np.cumsum(np.pad(weight, ((0, 0), (1, 0))), axis=1)
    # block[b, j, k]: mean of levels j..k; NaN where it is empty or k < j
    block = ratio(top[:, None, 1:] - top[:, :-1, None], bottom[:, None, 1:] - bottom[:, :-1, None])
    fit = np.empty_like(mean)
    for i in range(levels):
        peak = np.fmax.reduce(block[:, : i + 1, i:], axis=2)
        fit[:, i] = np.fmin.reduce(peak, axis=1)
    return fit


def ed50(doses: Floats, fitted: Floats, level: float | None = None) -> Floats:
    """Strength at which each falling fit [b, levels] comes down to `level` (None: half way) -> [b].

    Linear between levels, the first crossing if the fit lies on the level. -inf: below it from the
    start; inf: never reaches it (a flat fit, too, has no half way).
    """
    flat = fitted[:, 0] == fitted[:, -1]
    target = np.full(len(fitted), level) if level is not None else fitted[:, [0, -1]].mean(axis=1)
    below = fitted <= target[:, None]
    right = below.argmax(axis=1)
    left = np.maximum(right - 1, 0)
    rows = np.arange(len(fitted))
    drop = fitted[rows, left] - fitted[rows, right]
    part = np.nan_to_num(ratio(fitted[rows, left] - target, drop))
    crossing = doses[left] + part * (doses[right] - doses[left])
    never = ~below.any(axis=1) | (flat & (level is None))
    starts_below = below[:, 0] & (fitted[:, 0] < target)
    return np.where(never, np.inf, np.where(starts_below, -np.inf, crossing))
