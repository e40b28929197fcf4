"""The steered trials again, with a sentence after the question that asks the model to watch itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from pydantic import Field, field_validator

from steerback.metaprompts import LABEL, load_metaprompts
from steerback.protocols.base import Analysis, Cell, Inputs, cells, trial
from steerback.protocols.bench import Bench
from steerback.protocols.twins import comparisons
from steerback.records import Records
from steerback.tomlfile import Table
from steerback.types import Message, Trial

PLAIN, UNSTEERED = "steered", ", unsteered"
MEASURES = ("multi_attempt", "esr", "first_score", "implicit_recovery", "on_topic")


class Settings(Table):
    prompts_per_direction: int = Field(
        default=10, ge=1, description="Questions per direction: the trials of esr, asked again."
    )
    texts: list[str] = Field(
        default=["auto"],
        min_length=1,
        description="Sentences that are added, each an arm: packaged (one of each published kind), "
        'organism (what the organisms were trained with), or a TOML file of name = "sentence", in '
        "which {label} stands for the direction's label. auto: organism for the organisms' "
        "questions, else packaged.",
    )
    unsteered: bool = Field(
        default=True,
        description="Whether each sentence is tried without steering too: does it alone make the "
        "model restart?",
    )

    @field_validator("texts")
    @classmethod
    def _each_once(cls, value: list[str]) -> list[str]:
        if len(set(value)) < len(value):
            raise ValueError("it should name different sets")
        return value


class Metaprompt:
    name = "metaprompt"
    asks = "Does the model steer back more when the question asks it to watch itself?"
    settings: type[Table] = Settings
    needs: tuple[str, ...] = ("baseline", "esr")

    def before(self, bench: Bench, inputs: Inputs, settings: Table) -> dict[str, str]:
        """The sentences: those that the run began with, whatever becomes of their file."""
        return load_metaprompts(cast("Settings", settings).texts, inputs.prompts)

    def plan(self, inputs: Inputs, settings: Table) -> list[Trial]:
        own = cast("Settings", settings)
        every = list(cells(inputs, own.prompts_per_direction))
        return [
            t
            for kind, text in inputs.found[self.name].items()
            for cell in every
            if LABEL not in text or cell.direction.label
            for t in self._trials(inputs, cell, kind, text, own.unsteered)
        ]

    def _trials(
        self, inputs: Inputs, cell: Cell, kind: str, text: str, unsteered: bool
    ) -> Iterator[Trial]:
        asked = f"{cell.question} {text.replace(LABEL, cell.direction.label)}"
        messages = [Message("user", asked)]
        add = cell.direction.add()
        yield trial(self.name, kind, inputs, cell, [add], messages=messages)
        if unsteered:
            yield trial(self.name, kind + UNSTEERED, inputs, cell, [], messages=messages)

    def analyse(self, records: Records) -> Analysis:
        kinds = [arm for arm, _ in records.arms(self.name)]
        arms = {arm: [r.outcome for r in records.of(self.name, arm)] for arm in kinds}
        arms[PLAIN] = [r.outcome for r in records.of("esr", PLAIN)]
        arms["baseline"] = [r.outcome for r in records.of("baseline")]
        against = [(a, "baseline" if a.endswith(UNSTEERED) else PLAIN) for a in kinds]
        return Analysis(records.summaries(self.name), tuple(comparisons(arms, against, MEASURES)))


PROTOCOL = Metaprompt()
