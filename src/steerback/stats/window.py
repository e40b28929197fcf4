"""Where along a dose a rate is high: its peak, and the stretch over which it is at least half of it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from steerback.errors import UserError
from steerback.stats.bootstrap import (
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


@dataclass(frozen=True)
class Window:
    """Of a rate against a dose. Ends are infinite where the rate is still high at the last dose."""

    peak: Mean
    """Dose with the highest rate."""
    height: float
    """The rate there. Chosen as the highest, it is a little too high."""
    start: Mean
    """Dose from which the rate is at least half of that."""
    end: Mean


def window(
    dose: Sequence[float],
    happened: Sequence[bool],
    cluster: Sequence[Hashable],
    *,
    n_resamples: int = RESAMPLES,
    seed: Seed = 0,
) -> Window | None:
    """`dose`, `happened`, `cluster` [n]: one of each per trial. None if it never happened.

    Rates are joined by straight lines between doses. Clusters are resampled whole; a resample in which
    nothing happened has no window and is left out. Raises UserError with fewer than two doses.
    """
    doses, which = np.unique(np.asarray(dose, np.float64), return_inverse=True)
    if len(doses) < 2:
        raise UserError("window: all trials have one dose; give two or more")
    if not any(happened):
        return None
    codes, n = cluster_codes(cluster)
    cell = codes * len(doses) + which
    both = np.stack([np.asarray(happened, np.float64), np.ones(len(cell))], axis=1)
    sums = sum_by_cluster(cell, n * len(doses), both).reshape(n, len(doses), 2)

    def rates(counts: Floats) -> Floats:
        totals = np.tensordot(counts, sums, axes=1)
        return np.nan_to_num(ratio(totals[..., 0], totals[..., 1]))

    seen = rates(np.ones((1, n)))
    draws = bootstrap(lambda w: edges(doses, rates(w)), n, n_resamples, seed)
    values = edges(doses, seen)[0]
    found = (_mean(float(v), draws[:, i], len(codes), n) for i, v in enumerate(values))
    peak, start, end = found
    return Window(peak, float(seen.max()), start, end)


def edges(doses: Floats, rates: Floats) -> Floats:
    """rates [b, doses] -> [b, 3]: dose of the peak, first and last dose at half of it or more."""
    peak = rates.max(axis=1, keepdims=True)
    half = peak / 2
    high = rates >= half
    rows = np.arange(len(rates))
    first = high.argmax(axis=1)
    last = len(doses) - 1 - high[:, ::-1].argmax(axis=1)
    start = _between(doses, rates, rows, first, first - 1, half[:, 0], -np.inf)
    end = _between(doses, rates, rows, last, last + 1, half[:, 0], np.inf)
    found = np.stack([doses[rates.argmax(axis=1)], start, end], axis=1)
    return np.where(peak > 0, found, np.nan)


def _between(
    doses: Floats,
    rates: Floats,
    rows: np.ndarray[tuple[int], np.dtype[np.intp]],
    inside: np.ndarray[tuple[int], np.dtype[np.intp]],
    outside: np.ndarray[tuple[int], np.dtype[np.intp]],
    half: Floats,
    beyond: float,
) -> Floats:
    """Where the line from dose `inside` to its neighbour `outside` crosses half; `beyond` if there is
    no neighbour."""
    there = (outside >= 0) & (outside < len(doses))
    safe = np.where(there, outside, inside)
    drop = rates[rows, inside] - rates[rows, safe]
    part = np.nan_to_num(ratio(rates[rows, inside] - half, drop))
    crossing = doses[inside] + part * (doses[safe] - doses[inside])
    return np.where(there, crossing, beyond)


def _mean(value: float, draws: Floats, n: int, clusters: int) -> Mean:
    low, high = percentile_interval(draws, clusters)
    if not math.isnan(low):
        low, high = min(low, value), max(high, value)
    return Mean(value, low, high, n, clusters, method="cluster bootstrap")
