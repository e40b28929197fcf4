"""What an experiment is: settings, a plan of trials, an analysis. It knows no engine and no judge."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, runtime_checkable
from typing import Protocol as Interface

import numpy as np

from steerback.protocols.bench import Bench
from steerback.protocols.charts import Chart
from steerback.records import Records
from steerback.stats import Comparison, Mean, Summary
from steerback.tomlfile import Table
from steerback.types import Intervention, Message, Rate, Sampling, Trial, Unit, derive_seed


@dataclass(frozen=True)
class Direction:
    """A direction to steer with, and what calibration found out about it."""

    source: str
    index: int
    layer: int
    unit: Unit
    label: str = ""
    strength: float = math.nan
    """In `unit`; NaN before calibration."""
    sd: float = math.nan
    """Posterior sd of the strength."""
    skip: frozenset[str] = frozenset()
    """Questions that it has to do with: never paired with them."""
    positions: str = "generated"
    """Where it is added, if a protocol does not say otherwise."""

    @property
    def id(self) -> str:
        return f"{self.source}:{self.index}"

    def add(self, strength: float | None = None, positions: str = "") -> Intervention:
        value = self.strength if strength is None else strength
        where = positions or self.positions
        return Intervention("add", self.source, self.index, value, self.layer, self.unit, where)


@dataclass(frozen=True)
class Inputs:
    """What a plan is made from."""

    model: str
    seed: int
    questions: tuple[str, ...]
    directions: tuple[Direction, ...]
    """Those whose calibration reached its target."""
    sampling: Sampling
    prompts: str = ""
    """Spec that the questions were loaded from."""
    variant: tuple[str, ...] = ()
    """Ways of the published code that the run is made in (`Trial.variant`)."""
    sae: str = "sae"
    """Name of the run's SAE in interventions; directions may be of another source."""
    found: Mapping[str, Any] = field(default_factory=dict)
    """What protocols found before they could plan (see `Staged`), by their names."""


@dataclass(frozen=True)
class Cell:
    """One direction against one question, with the seed that every arm uses for it."""

    direction: Direction
    question: str
    seed: int


@dataclass(frozen=True)
class TrialKey:
    """A trial whose transcript is worth reading; a link in the report."""

    key: str


Entry = str | int | float | Mean | Rate | TrialKey | None
"""One cell of a sheet. None: not applicable or not known."""


@dataclass(frozen=True)
class Sheet:
    """A table that is neither a summary of an arm nor a comparison of two."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    """Each as long as `columns`."""
    notes: tuple[str, ...] = ()
    """What has to be known to read it."""


@dataclass(frozen=True)
class Analysis:
    """Tables and figures of one protocol."""

    summaries: tuple[Summary, ...] = ()
    comparisons: tuple[tuple[str, Comparison], ...] = ()
    """(what is compared with what, the comparison)"""
    sheets: tuple[Sheet, ...] = ()
    charts: tuple[Chart, ...] = ()
    """Figures, drawn by the report."""


class Protocol(Interface):
    """One experiment. A module of this package with a `PROTOCOL` of this kind is found by its name."""

    name: str
    asks: str
    """The question in a line."""
    settings: type[Table]

    def plan(self, inputs: Inputs, settings: Table) -> list[Trial]:
        """The trials, the same whenever the inputs are the same."""
        ...

    def analyse(self, records: Records) -> Analysis:
        """Tables from what is stored."""
        ...


@runtime_checkable
class Staged(Interface):
    """What a protocol has besides, if it must look before it can plan."""

    name: str
    needs: tuple[str, ...]
    """Protocols whose trials or findings it rests on: they run first."""

    def before(self, bench: Bench, inputs: Inputs, settings: Table) -> Any:
        """What the plan rests on, as a JSON value. It is asked for once per run and stored; `plan` and
        those after it see it as `inputs.found[name]`, `analyse` as `records.finding(name)`."""
        ...


@runtime_checkable
class Continued(Interface):
    """What a protocol has besides, if what follows a prefill is to be judged by itself."""

    def continued(self, trials: Sequence[Trial]) -> list[Trial]:
        """Those of its trials; `records.score_of_rest` has the scores."""
        ...


@runtime_checkable
class Recording(Interface):
    """What a protocol has besides, if others' trials are to be recorded while they are generated."""

    name: str
    records: tuple[str, ...]
    """Those protocols. They run after everything that this one needs before them."""

    def recorded(self, inputs: Inputs, settings: Table) -> Sequence[int]:
        """Latents of the run's SAE; a trial's own added latent is recorded with them. None: nothing."""
        ...


def cells(inputs: Inputs, per_direction: int) -> Iterator[Cell]:
    """Each direction with `per_direction` questions it has nothing to do with, drawn without
    replacement (all of them, and again, if there are fewer). Question and seed depend on the run's
    seed and the direction alone: arms and protocols that ask for the same cells are paired."""
    for direction in inputs.directions:
        allowed = [q for q in inputs.questions if q not in direction.skip]
        if not allowed:
            continue
        rng = np.random.default_rng(derive_seed(inputs.seed, "questions", direction.id))
        order = rng.permutation(len(allowed))
        for n in range(per_direction):
            question = allowed[order[n % len(allowed)]]
            again = n // len(allowed)
            yield Cell(
                direction,
                question,
                derive_seed(inputs.seed, "trial", direction.id, question, again),
            )


def trial(
    protocol: str,
    arm: str,
    inputs: Inputs,
    cell: Cell,
    interventions: Sequence[Intervention],
    *,
    prefill: str = "",
    messages: Sequence[Message] = (),
) -> Trial:
    """The cell's trial in one arm. `messages`: what the model sees, if it is not the question alone."""
    return Trial(
        protocol=protocol,
        arm=arm,
        model=inputs.model,
        question=cell.question,
        messages=tuple(messages) or (Message("user", cell.question),),
        sampling=inputs.sampling,
        seed=cell.seed,
        interventions=tuple(interventions),
        prefill=prefill,
        variant=inputs.variant,
    )
