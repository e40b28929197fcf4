"""No steering, same questions and seeds: what the model does when nobody pushes it."""

from __future__ import annotations

from typing import cast

from pydantic import Field

from steerback.protocols.base import Analysis, Inputs, cells, trial
from steerback.records import Records
from steerback.tomlfile import Table
from steerback.types import Trial


class Settings(Table):
    prompts_per_direction: int = Field(
        default=10,
        ge=1,
        description="Questions per direction; the trials are the unsteered twins of those of esr.",
    )


class Baseline:
    name = "baseline"
    asks = "How often does the model restart, and how well does it answer, when nobody steers it?"
    settings: type[Table] = Settings

    def plan(self, inputs: Inputs, settings: Table) -> list[Trial]:
        n = cast("Settings", settings).prompts_per_direction
        return [trial(self.name, "unsteered", inputs, cell, []) for cell in cells(inputs, n)]

    def analyse(self, records: Records) -> Analysis:
        return Analysis(records.summaries(self.name))


PROTOCOL = Baseline()
