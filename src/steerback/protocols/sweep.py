"""Each direction at several strengths, in units of its own threshold: where does steering back occur?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from pydantic import Field, model_validator

from steerback.protocols.base import (
    Analysis,
    Direction,
    Inputs,
    cells,
    trial,
)
from steerback.protocols.bench import Bench
from steerback.protocols.dosage import SDS, THRESHOLDS, Level, charts, doses, windows
from steerback.protocols.twins import comparisons
from steerback.records import Records
from steerback.stats import Outcome, summarise
from steerback.tomlfile import Table
from steerback.types import Trial

MEASURES = ("multi_attempt", "esr")


class Settings(Table):
    prompts_per_direction: int = Field(
        default=5, ge=1, description="Questions that each direction is tried on at each strength."
    )
    of_threshold: list[float] = Field(
        default=[0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0],
        description="Strengths as multiples of the direction's own threshold.",
    )
    of_sd: list[float] = Field(
        default=[],
        description="Strengths as posterior standard deviations from the direction's own threshold, "
        "such as [-3, -1, 1, 3]; those at which nothing would be added are left out.",
    )

    @model_validator(mode="after")
    def _distinct(self) -> Settings:
        if any(x <= 0 for x in self.of_threshold):
            raise ValueError("of_threshold should hold numbers above 0")
        for levels in (self.of_threshold, self.of_sd):
            if len(set(levels)) < len(levels):
                raise ValueError("it should hold different levels")
        if 1 in self.of_threshold and 0 in self.of_sd:
            raise ValueError("1 of the threshold and 0 sd from it are one strength; keep one")
        if len(self.of_threshold) + len(self.of_sd) < 2:
            raise ValueError("it should hold two levels or more, of_threshold and of_sd together")
        return self


class Sweep:
    name = "sweep"
    asks = "At which strengths does the model steer back, and where does a push begin to work?"
    settings: type[Table] = Settings
    needs: tuple[str, ...] = ()

    def before(self, bench: Bench, inputs: Inputs, settings: Table) -> Any:
        own = cast("Settings", settings)
        return {
            "thresholds": {d.id: [d.strength, d.sd, d.label] for d in inputs.directions},
            "of_threshold": sorted(own.of_threshold),
            "of_sd": sorted(own.of_sd),
        }

    def plan(self, inputs: Inputs, settings: Table) -> list[Trial]:
        own = cast("Settings", settings)
        levels = _levels(inputs.found[self.name])
        strengths = {d.id: distinct(d, levels) for d in inputs.directions}
        return [
            trial(self.name, level.arm, inputs, cell, [cell.direction.add(strength)])
            for cell in cells(inputs, own.prompts_per_direction)
            for level, strength in strengths[cell.direction.id]
        ]

    def analyse(self, records: Records) -> Analysis:
        found = records.finding(self.name)[1]
        if found is None:
            return Analysis()
        arms = {level: _outcomes(records, level) for level in _levels(found)}
        arms = {level: outcomes for level, outcomes in arms.items() if outcomes}
        model = records.model(self.name)
        summaries = {
            level: summarise(o, protocol=self.name, arm=level.arm, model=model)
            for level, o in arms.items()
        }
        named = {level.arm: o for level, o in arms.items()}
        home = Level(1.0, THRESHOLDS).arm
        against = [(arm, home) for arm in named if arm != home]
        sheets = [
            *windows(arms),
            *doses([o for outcomes in arms.values() for o in outcomes], found["thresholds"]),
        ]
        return Analysis(
            tuple(summaries.values()),
            tuple(comparisons(named, against, MEASURES)),
            tuple(sheets),
            tuple(charts(summaries)),
        )


# --- plan ------------------------------------------------------------------------------------


def _levels(found: Mapping[str, Any]) -> list[Level]:
    return [
        *(Level(x, THRESHOLDS) for x in found["of_threshold"]),
        *(Level(x, SDS) for x in found["of_sd"]),
    ]


def distinct(direction: Direction, levels: Sequence[Level]) -> list[tuple[Level, float]]:
    """The levels at which something is added, with their strengths; a strength that an earlier level
    has already is not tried again."""
    found: list[tuple[Level, float]] = []
    for level in levels:
        strength = level.strength(direction.strength, direction.sd)
        if strength > 0 and not any(math.isclose(strength, s, rel_tol=1e-6) for _, s in found):
            found.append((level, strength))
    return found


# --- analysis --------------------------------------------------------------------------------


def _outcomes(records: Records, level: Level) -> list[Outcome]:
    """Twins are the trials of one direction, question and seed, at whatever strength."""
    return [
        replace(r.outcome, pair=f"{r.trial.cluster}/{r.trial.question}/{r.trial.seed}")
        for r in records.of("sweep", level.arm)
    ]


PROTOCOL = Sweep()
