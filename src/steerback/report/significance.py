"""How the p values of a table of paired comparisons stand to each other and to their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from steerback.stats import Comparison, holm
from steerback.stats.bootstrap import LEVEL, RESAMPLES, Floats


def adjusted(compared: Sequence[Comparison]) -> Floats:
    """Holm's adjusted p values, in the order given, among the rows of the same measure; those that are
    not known do not count."""
    p = np.array([c.p for c in compared], np.float64)
    found = np.full(len(p), math.nan)
    for rows in _families(compared):
        found[rows] = holm(p[rows])
    return found


def _families(compared: Sequence[Comparison]) -> list[list[int]]:
    """Rows with a p value, by measure."""
    rows: dict[str, list[int]] = {}
    for i, c in enumerate(compared):
        if not math.isnan(c.p):
            rows.setdefault(c.measure, []).append(i)
    return list(rows.values())


def least_p(c: Comparison) -> float:
    """The smallest p value that the swap test can give.

    Of 2^C ways to swap the arms of C directions, the one that was seen is the most extreme at best, and
    its mirror image ties with it in a two-sided test. Drawn at random, p does not fall below 1 / (draws
    + 1) either.
    """
    ways = 2.0 ** -min(c.clusters, 1000)
    return float(
        min(1.0, max(ways * (2 if c.alternative == "two-sided" else 1), 1 / (1 + RESAMPLES)))
    )


def disagree(c: Comparison) -> bool:
    """Whether one of interval and p value excludes "no difference" and the other does not. Only a
    two-sided p value says what the interval does."""
    d = c.difference
    if c.alternative != "two-sided" or math.isnan(c.p) or math.isnan(d.low):
        return False
    return (d.low > 0 or d.high < 0) != (c.p < 1 - LEVEL)


def notes(compared: Sequence[Comparison]) -> list[str]:
    """What has to be known to read intervals and p values of one table together."""
    if not compared:
        return []
    least = sorted({least_p(c) for c in compared})
    directions = sorted({c.clusters for c in compared})
    rows = max(map(len, _families(compared)), default=0)
    said = [
        "Interval and p come from two methods. The interval draws directions anew, with their trials "
        "(with fewer than 10 events in an arm it is put together from the arms' own intervals, square "
        "and add). p is from swapping the arms' labels, a whole direction at a time.",
        f"With {_range(directions, 'g')} directions p cannot fall below about {_range(least, '.2g')}. "
        f"p (Holm) is adjusted for the rows of the same measure, at most {rows}"
        + (
            ": so many for so few directions that none of them need come below 0.05. Read the rows that "
            "were of interest beforehand by their own p."
            if rows * least[0] >= 1 - LEVEL
            else "."
        ),
    ]
    if n := sum(map(disagree, compared)):
        said.append(
            f"{n} {'row is' if n == 1 else 'rows are'} marked ≠: the interval leaves out 0 and p is "
            "0.05 or more, or the other way round. Take such a difference as open. Figures show "
            "intervals alone."
        )
    return said


def _range(values: Sequence[float], form: str) -> str:
    ends = dict.fromkeys(f"{x:{form}}" for x in (values[0], values[-1]))
    return " to ".join(ends)
