"""The numbers that an organism is known by, read from what protocols found.

A number has a key, `PROTOCOL[:ARM].MEASURE[.low]`:

- `esr.first_score`: of the protocol's only arm; shares are in per cent.
- `prefill:unsteered.multi_attempt`: of one arm.
- `ablation:detectors.multi_attempt_cut`: how much lower than in the arm it is compared with, in per
  cent of what it is there.
- `metaprompt:trained.multi_attempt_ratio`: how many times what it is there.
- `ablation:random set.multi_attempt_change`: change in per cent, the median over arms that are called
  so and numbered; its ends are the least and the largest.
- `.low`: the low end of the interval instead of the estimate.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from steerback.types import Rate

if TYPE_CHECKING:
    from steerback.protocols.base import Analysis
    from steerback.stats import Comparison, Mean, Summary

_SCORES = ("first_score", "score_delta")
"""Measures that are scores of 100 already; all others are shares."""
_RELATIVE = re.compile(r"(\w+)_(cut|ratio|change)")


class Estimate(NamedTuple):
    value: float
    low: float
    """Ends of the 95% interval, clustered by direction."""
    high: float
    n: int
    """Trials, or pairs of trials."""


def protocol_of(key: str) -> str:
    return key.partition(".")[0].partition(":")[0]


def estimate(found: Mapping[str, Analysis], key: str) -> Estimate:
    """The number that `key` stands for. A key that fits nothing found is a ValueError."""
    place, measure = key.removesuffix(".low").rsplit(".", 1)
    protocol, _, arm = place.partition(":")
    relative = _RELATIVE.fullmatch(measure)
    if relative is None:
        number = _of_arm(found[protocol], arm, measure)
    elif relative[2] == "change":
        number = _median_change(found[protocol], arm, relative[1])
    else:
        number = _against(found[protocol], arm, relative[1], cut=relative[2] == "cut")
    return number._replace(value=number.low) if key.endswith(".low") else number


def _of_arm(analysis: Analysis, arm: str, measure: str) -> Estimate:
    """Of the arm called so, or of the only one."""
    summary: Summary
    (summary,) = (s for s in analysis.summaries if s.arm == arm or not arm)
    number: Rate | Mean = getattr(summary, measure)
    value = number.rate if isinstance(number, Rate) else number.value
    scale = 1 if measure in _SCORES else 100
    return Estimate(scale * value, scale * number.low, scale * number.high, number.n)


def _against(analysis: Analysis, arm: str, measure: str, cut: bool) -> Estimate:
    (found,) = _comparisons(analysis, rf"{re.escape(arm)}, against .*", measure)
    ratio = found.ratio
    if cut:
        low, high = (100 * (1 - x) for x in (ratio.high, ratio.low))
        return Estimate(100 * (1 - ratio.value), low, high, found.pairs)
    return Estimate(ratio.value, ratio.low, ratio.high, found.pairs)


def _median_change(analysis: Analysis, arm: str, measure: str) -> Estimate:
    found = _comparisons(analysis, rf"{re.escape(arm)} \d+, against .*", measure)
    changes = [100 * (c.ratio.value - 1) for c in found]
    return Estimate(median(changes), min(changes), max(changes), found[0].pairs)


def _comparisons(analysis: Analysis, title: str, measure: str) -> list[Comparison]:
    return [c for t, c in analysis.comparisons if re.fullmatch(title, t) and c.measure == measure]
