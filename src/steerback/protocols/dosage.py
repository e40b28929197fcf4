"""What a sweep over strengths shows: rates along the levels, their window, each direction's ED50."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from steerback.protocols.base import Entry, Sheet
from steerback.protocols.charts import Chart, Lines, Series
from steerback.stats import Cutoffs, DoseResponse, Mean, Outcome, Summary, dose_response
from steerback.stats.window import Window, window
from steerback.types import Rate

THRESHOLDS, SDS = "thresholds", "sd from the threshold"
"""Units of a level."""
NAMES = {
    "multi_attempt": "restarted",
    "esr": "ESR",
    "first_score": "first score",
    "degraded": "degraded",
    "implicit_recovery": "implicit recovery",
}


@dataclass(frozen=True)
class Level:
    """One strength of every direction."""

    x: float
    unit: str

    @property
    def arm(self) -> str:
        return f"{self.x:g} thresholds" if self.unit == THRESHOLDS else f"{self.x:+g} sd"

    def strength(self, threshold: float, sd: float) -> float:
        return self.x * threshold if self.unit == THRESHOLDS else threshold + self.x * sd


def charts(summaries: Mapping[Level, Summary]) -> Iterator[Chart]:
    for unit in (THRESHOLDS, SDS):
        own = {level: s for level, s in summaries.items() if level.unit == unit}
        if len(own) > 1:
            said = {m: _series([getattr(s, m) for s in own.values()], m) for m in NAMES}
            panels = (
                ("restarted, and restarted and improved, %", (said["multi_attempt"], said["esr"])),
                ("first-attempt score", (said["first_score"],)),
                ("degraded, and silent recovery, %", (said["degraded"], said["implicit_recovery"])),
            )
            yield Lines(
                f"Outcome against strength, in {unit}",
                "Every direction at each strength, on the same questions with the same seeds. Bands: "
                "95%, clustered by direction.",
                f"strength, {unit}",
                tuple(level.x for level in own),
                panels,
                mark=1.0 if unit == THRESHOLDS else 0.0,
            )


def _series(values: Sequence[Rate | Mean], measure: str) -> Series:
    return Series(NAMES[measure], tuple(_percent(v) for v in values))


def _percent(value: Rate | Mean) -> Mean:
    if isinstance(value, Mean):
        return value
    middle, low, high = (100 * x for x in (value.rate, value.low, value.high))
    return Mean(middle, low, high, value.n, value.clusters, value.missing, value.method)


def windows(arms: Mapping[Level, Sequence[Outcome]]) -> Iterator[Sheet]:
    """Where the push works, where the answer comes back, where the text breaks."""
    for unit in (THRESHOLDS, SDS):
        trials = [(level.x, o) for level, os in arms.items() if level.unit == unit for o in os]
        if len({x for x, _ in trials}) > 1:
            yield _window_sheet(trials, unit)


def _window_sheet(trials: Sequence[tuple[float, Outcome]], unit: str) -> Sheet:
    scored = [(x, o) for x, o in trials if not o.missing]
    rows: list[tuple[Entry, ...]] = []
    for name, events in (
        ("restarted", [bool(o.multi) for _, o in scored]),
        ("ESR", [bool(o.esr) for _, o in scored]),
    ):
        found = window([x for x, _ in scored], events, [o.cluster for _, o in scored])
        rows += _window_rows(name, found)
    on_topic = Cutoffs().on_topic
    score = dose_response(
        [x for x, _ in scored],
        [o.first or 0.0 for _, o in scored],
        [o.cluster for _, o in scored],
        level=on_topic,
    )
    text = dose_response(
        [x for x, _ in trials],
        [100.0 - 100.0 * o.degraded for _, o in trials],
        [o.cluster for _, o in trials],
        level=50.0,
    )
    rows += [
        (f"first score falls to {on_topic:g}: there is something to come back from", _ed50(score)),
        ("half of the answers are degraded: nothing is left to come back with", _ed50(text)),
    ]
    return Sheet(
        f"Window of strengths, in {unit}",
        ("", "strength"),
        tuple(rows),
        (
            "rates and scores over all directions, joined by straight lines between levels; score and "
            "degradation by a fit that never turns back; intervals resample directions",
            "∞: not reached at the strongest level; −∞: reached below the weakest",
        ),
    )


def _window_rows(name: str, found: Window | None) -> list[tuple[Entry, ...]]:
    if found is None:
        return [(f"{name}: never", None)]
    return [
        (f"{name}: highest rate ({100 * found.height:.1f}%)", found.peak),
        (f"{name}: at least half of that from", found.start),
        (f"{name}: at least half of that up to", found.end),
    ]


def _ed50(fit: DoseResponse) -> Mean:
    return Mean(fit.ed50, fit.low, fit.high, sum(fit.n), 0, method="monotone fit, bootstrap")


def doses(
    outcomes: Sequence[Outcome], thresholds: Mapping[str, tuple[float, float, str]]
) -> Iterator[Sheet]:
    """The dose at which each direction's first score has come half way down."""
    by_direction: dict[str, list[Outcome]] = {}
    for o in outcomes:
        if o.first is not None:
            by_direction.setdefault(o.cluster, []).append(o)
    rows = [
        (direction, label, len(own), threshold, sd, *_fitted(own, threshold))
        for direction, (threshold, sd, label) in thresholds.items()
        for own in [by_direction.get(direction, [])]
        if len({o.strength for o in own}) > 1
    ]
    if rows:
        columns = (
            "direction",
            "label",
            "trials",
            "threshold",
            "posterior sd",
            "ED50",
            "in thresholds",
            "highest",
            "lowest",
        )
        yield Sheet(
            "Dose and first score of each direction",
            columns,
            tuple(rows),
            (
                "ED50: strength at which a monotone fit of the first-attempt score has fallen half way "
                "from its highest to its lowest value; questions are resampled",
                "∞: the score does not fall",
            ),
        )


def _fitted(own: Sequence[Outcome], threshold: float) -> tuple[Entry, ...]:
    fit = dose_response(
        [o.strength or 0.0 for o in own],
        [o.first or 0.0 for o in own],
        [o.pair for o in own],
    )
    half = _ed50(fit)
    return half, half.value / threshold, fit.fitted[0], fit.fitted[-1]
