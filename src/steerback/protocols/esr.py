"""Steered generation at each direction's calibrated strength: does the model steer back, how often?"""

from __future__ import annotations

from typing import cast

from pydantic import Field

from steerback.protocols.base import Analysis, Inputs, cells, trial
from steerback.records import Records
from steerback.tomlfile import Table
from steerback.types import Trial


class Settings(Table):
    prompts_per_direction: int = Field(
        default=10, ge=1, description="Questions that each direction is tried on."
    )


class Esr:
    name = "esr"
    asks = "Does the model steer back while it is being steered, and how often?"
    settings: type[Table] = Settings

    def plan(self, inputs: Inputs, settings: Table) -> list[Trial]:
        n = cast("Settings", settings).prompts_per_direction
        return [
            trial(self.name, "steered", inputs, cell, [cell.direction.add()])
            for cell in cells(inputs, n)
        ]

    def analyse(self, records: Records) -> Analysis:
        return Analysis(records.summaries(self.name))


PROTOCOL = Esr()
