"""Intervals of a difference, ratio or product from the intervals of its parts.

The bootstrap cannot see variation that the sample does not show: with few events its interval of a
difference is too short, and with none it has no width. "Square and add" (Newcombe 1998, Stat. Med.
17:873; the MOVER of Zou and Donner 2008, Stat. Med. 27:1693) keeps the score intervals' behaviour near 0
and 1. The parts are taken as uncorrelated, which is conservative for arms that move together.
"""

from __future__ import annotations

import math

from steerback.types import Rate

SQUARE_AND_ADD = "square and add"
FEW = 10
"""Events, or non-events, below which these intervals replace the bootstrap."""

Interval = tuple[float, float]
Estimate = tuple[float, float, float]
"""Value, low, high."""


def few_events(*rates: Rate) -> bool:
    return any(min(r.k, r.n - r.k) < FEW for r in rates)


def difference(b: Estimate, a: Estimate) -> Interval:
    """Interval of b - a."""
    value = b[0] - a[0]
    return (
        value - math.hypot(b[0] - b[1], a[2] - a[0]),
        value + math.hypot(b[2] - b[0], a[0] - a[1]),
    )


def quotient(b: Estimate, a: Estimate) -> Interval:
    """Interval of b / a for parts that are not negative (Donner and Zou 2012, SMMR 21:347).

    The upper end is infinite where the interval of a reaches 0.
    """
    low, high = _quotient_end(b, a, 1, 2), _quotient_end(b, a, 2, 1)
    return max(0.0, low), high if a[1] > 0 else math.inf


def _quotient_end(b: Estimate, a: Estimate, end_b: int, end_a: int) -> float:
    sign = -1 if end_b == 1 else 1
    across = b[end_b] * a[end_a] * (2 * b[0] - b[end_b]) * (2 * a[0] - a[end_a])
    top = b[0] * a[0] + sign * math.sqrt(max(0.0, (b[0] * a[0]) ** 2 - across))
    bottom = a[end_a] * (2 * a[0] - a[end_a])
    return top / bottom if bottom else math.nan


def product(share: Estimate, effect: Estimate) -> Interval:
    """Interval of share x effect, to first order; the share is not negative, the effect may be."""
    value = share[0] * effect[0]
    near, far = (1, 2) if effect[0] >= 0 else (2, 1)
    down = math.hypot(share[0] * (effect[0] - effect[1]), effect[0] * (share[0] - share[near]))
    up = math.hypot(share[0] * (effect[2] - effect[0]), effect[0] * (share[far] - share[0]))
    return value - down, value + up
