"""Which figures a report has, drawn and kept one after the other."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup
from matplotlib.figure import Figure

from steerback.report import charts, figures
from steerback.report.canvas import canvas, keep
from steerback.report.doses import by_direction, pooled
from steerback.report.gather import HEADLINE, Experiment, Run
from steerback.report.published import published
from steerback.stats import Summary


class Shown(NamedTuple):
    """A figure in the page."""

    name: str
    svg: Markup
    caption: str


@dataclass
class Gallery:
    """Draws into one folder; names are made of what is shown, and never used twice."""

    folder: Path
    used: set[str] = field(default_factory=set)

    def draw(
        self, parts: Sequence[str], height: float, caption: str, plot: Callable[[Figure], None]
    ) -> Shown:
        name = self._name(slug("-".join(parts)))
        with canvas(height) as figure:
            plot(figure)
            return Shown(name, keep(figure, self.folder, name, caption), caption)

    def _name(self, wanted: str) -> str:
        numbered = (f"{wanted}-{n}" for n in count(2))
        name = (
            wanted if wanted not in self.used else next(n for n in numbered if n not in self.used)
        )
        self.used.add(name)
        return name

    def rates(self, summaries: Sequence[Summary]) -> Shown | None:
        """Steered arms beside the published models."""
        ours = [s for s in summaries if s.protocol == "esr" and s.n]
        theirs = published().models("esr")
        if not ours:
            return None
        return self.draw(
            ["rates"],
            1.2 + 0.3 * (len(ours) + len(theirs)),
            "Restarts and ESR of this report (filled, above the dotted line) and as published "
            "(hollow; ◁ where only an upper bound is known). Intervals: clustered here, Wilson with "
            "trials as independent for the published rates.",
            lambda fig: figures.rates(fig, ours, theirs),
        )

    def calibration(self, run: Run) -> list[Shown]:
        found = run.strengths
        if not found:
            return []
        shown = [
            self.draw(
                [run.name, "calibration"],
                3.0,
                f"{run.name}: first-attempt score at the calibrated strength on fresh prompts, a line "
                "per direction (95%, questions resampled). Line and band: the target and 8 points "
                "around it.",
                lambda fig: figures.achieved(fig, found, run.target),
            )
        ]
        if any(s.calibration.reached for s in found):
            shown.append(
                self.draw(
                    [run.name, "strengths"],
                    3.0,
                    f"{run.name}: strengths of the directions in use; a tick each.",
                    lambda fig: figures.strength_histogram(fig, found, unit_name(run.unit)),
                )
            )
        return shown

    def scores(self, run: Run) -> list[Shown]:
        """One figure for the main experiments and one for each other, a panel per arm."""
        shown = []
        names = [e.name for e in run.experiments]
        for group in (
            [n for n in names if n in HEADLINE],
            *([n] for n in names if n not in HEADLINE),
        ):
            arms = {
                arm.arm if len(group) == 1 else f"{arm.protocol}, {arm.arm}": rows
                for arm, rows in run.arms().items()
                if arm.protocol in group and any(r.outcome and not r.outcome.missing for r in rows)
            }
            if arms:
                caption = (
                    f"{run.name}, {' and '.join(group)}: scores of first attempts, and of first and "
                    "last attempts where there was a restart. Look at the shape: a mean between two "
                    "heaps describes no answer."
                )
                plot = partial(figures.scores, arms=arms)
                parts = [run.name, "scores", *group]
                shown.append(self.draw(parts, 0.9 + 1.35 * len(arms), caption, plot))
        return shown

    def outcomes(self, summaries: Sequence[Summary]) -> Shown | None:
        scored = [s for s in summaries if s.n]
        if not scored:
            return None
        return self.draw(
            ["outcomes"],
            0.9 + 0.46 * len(scored),
            "What the answers came to: degraded by their text (a word five times in a row; the share "
            "stands behind the bar), else on topic where the last attempt scores 50 or more, else "
            "steered.",
            lambda fig: figures.outcomes(fig, scored),
        )

    def doses(self, run: Run) -> list[Shown]:
        """One figure per steered arm of the main experiments in which strengths differ."""
        shown = []
        for arm, rows in run.arms().items():
            if arm.protocol not in HEADLINE:
                continue
            outcomes = [r.outcome for r in rows if r.outcome]
            points = by_direction(outcomes)
            if len({p.low for p in points}) < 2:
                continue
            caption = (
                f"{run.name}, {arm.protocol}, {arm.arm}: outcome against strength. A point per "
                "direction and strength (lines: 95%, Wilson or its trials resampled); steps: trials "
                "pooled by strength, bands clustered by direction. Where each direction has one "
                "strength, calibrated to one score, a slope compares directions, not doses."
            )
            parts = [run.name, "strength", arm.protocol, arm.arm]
            plot = partial(
                figures.doses, points=points, bands=pooled(outcomes), unit=unit_name(run.unit)
            )
            shown.append(self.draw(parts, 4.6, caption, plot))
        return shown

    def charts(self, run: Run, experiment: Experiment) -> list[Shown]:
        """Those that the protocol asks for."""
        return [
            self.draw(
                [run.name, experiment.name, chart.title],
                charts.height(chart),
                f"{run.name}: {chart.title}. {chart.caption}",
                partial(charts.draw, chart=chart),
            )
            for chart in experiment.analysis.charts
        ]

    def funnel(self, run: Run) -> Shown | None:
        if not run.funnel:
            return None
        return self.draw(
            [run.name, "funnel"],
            0.8 + 0.42 * len(run.funnel),
            f"{run.name}: latents left after each rule of the selection.",
            lambda fig: figures.funnel(fig, run.funnel),
        )


def unit_name(unit: str) -> str:
    return {"resid": "median residual norms", "raw": "multiples of the direction"}.get(unit, unit)


def slug(text: str) -> str:
    """A name for files and ids: letters, digits and hyphens."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower() or "figure"
