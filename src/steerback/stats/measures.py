"""The measures by name: what each reads from a trial, and which trials it can be read from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from steerback.errors import UserError, nearest
from steerback.stats.bootstrap import Mean
from steerback.stats.outcomes import Outcome

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Measure:
    """A mean over the trials it applies to: sum of values over count of values."""

    value: Callable[[Outcome], float | None]
    """The trial's contribution; None where the measure does not apply (no restart to improve on)."""
    known: Callable[[Outcome], bool]
    """False: missing. A missing trial is counted as such; one where it does not apply is not."""
    low: float = 0.0
    high: float = 1.0

    @property
    def is_rate(self) -> bool:
        return (self.low, self.high) == (0.0, 1.0)

    def columns(self, outcomes: Sequence[Outcome]) -> tuple[Floats, Floats]:
        """Numerator [n] and denominator [n] (0 or 1) per trial."""
        values = [self.value(o) if self.known(o) else None for o in outcomes]
        numerator = np.array([0.0 if v is None else float(v) for v in values])
        denominator = np.array([float(v is not None) for v in values])
        return numerator, denominator


def _scored(o: Outcome) -> bool:
    return not o.missing


MEASURES = {
    "multi_attempt": Measure(lambda o: o.multi, _scored),
    "esr": Measure(lambda o: o.esr, _scored),
    "cond_improvement": Measure(lambda o: o.improved, _scored),
    "first_score": Measure(lambda o: o.first, _scored, 0, 100),
    "score_delta": Measure(lambda o: o.delta if o.multi else None, _scored, -100, 100),
    "degraded": Measure(lambda o: o.degraded, lambda o: True),
    "on_topic": Measure(lambda o: o.three_way == "on_topic", _scored),
    "steered": Measure(lambda o: o.three_way == "steered", _scored),
    "degraded_scored": Measure(lambda o: o.three_way == "degraded", _scored),
    "implicit_recovery": Measure(lambda o: o.implicit, lambda o: o.implicit is not None),
    "implicit_decline": Measure(
        lambda o: o.implicit_decline, lambda o: o.implicit_decline is not None
    ),
}


def measure(name: str) -> Measure:
    if name not in MEASURES:
        raise UserError(f"unknown measure {name!r}; {nearest(name, MEASURES)}")
    return MEASURES[name]


def scale(name: str) -> float:
    """What brings a measure to a scale of 100: scores are on it, rates and events of any name not."""
    return 100.0 if name not in MEASURES or MEASURES[name].is_rate else 1.0


def points(difference: Mean, name: str) -> Mean:
    """A difference of a measure in points: percentage points of a rate, points of a score."""
    by = scale(name)
    value, low, high = (by * x for x in (difference.value, difference.low, difference.high))
    return replace(difference, value=value, low=low, high=high)
