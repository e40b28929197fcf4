"""The trials that every compared model shares: held-out questions, equal raw strengths, wanted pushes.

They are planned once, from the base, and stored with every model's run: a difference between two
models is then a difference between twins of one direction, question and seed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

from steerback.protocols.base import Direction, Inputs, cells, trial
from steerback.types import Trial, Unit

NAME = "finetune"
"""Protocol of these trials."""
HELD_OUT, HELD_OUT_PLAIN, WANTED = "held out", "held out, unsteered", "wanted"
NORMS = "the base's threshold in residual norms"
"""Arm at an equal share of each model's own stream: a stream that has grown gets a longer vector."""


@dataclass(frozen=True)
class Shared:
    """One direction as all models see it."""

    id: str
    raw: float
    """The base's own threshold, times the direction as stored."""
    resid: float
    """The same in median residual norms of the base."""
    seen: bool
    """Whether some compared model was trained along it."""
    skip: tuple[str, ...] = ()
    """Questions of the run that it has to do with."""
    skip_held_out: tuple[str, ...] = ()
    """Held-out questions that it has to do with."""


@dataclass(frozen=True)
class Design:
    questions: tuple[str, ...]
    """Of the run."""
    held_out: tuple[str, ...]
    directions: tuple[Shared, ...]
    factors: tuple[float, ...]
    """Strengths that all models get, as multiples of the base's thresholds."""
    per_direction: int
    """Questions per direction and arm."""

    def as_json(self) -> dict[str, Any]:
        return cast("dict[str, Any]", json.loads(json.dumps(asdict(self))))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Design:
        shared = [
            Shared(**{**d, "skip": tuple(d["skip"]), "skip_held_out": tuple(d["skip_held_out"])})
            for d in data["directions"]
        ]
        return cls(
            tuple(data["questions"]),
            tuple(data["held_out"]),
            tuple(shared),
            tuple(data["factors"]),
            data["per_direction"],
        )


def dose(factor: float) -> str:
    """Arm at a multiple of the base's threshold."""
    return f"{factor:g} of the base's threshold"


def trials(design: Design, inputs: Inputs) -> list[Trial]:
    """Of one model. inputs: its own, with the strengths that it was calibrated to."""
    shared = {d.id: d for d in design.directions}
    own = [d for d in inputs.directions if d.id in shared]
    every = [_at(s, inputs, "raw") for s in design.directions]
    shares = [_at(s, inputs, "resid") for s in design.directions]
    out = _held_out(design, inputs, own)
    asked = replace(inputs, questions=design.questions)
    for factor in design.factors:
        out += _arm(asked, dose(factor), every, design.per_direction, factor)
    out += _arm(asked, NORMS, shares, design.per_direction)
    wanted = [
        replace(d, skip=frozenset(design.questions) - frozenset(shared[d.id].skip)) for d in every
    ]
    return out + _arm(asked, WANTED, wanted, design.per_direction)


def _at(shared: Shared, inputs: Inputs, unit: Unit) -> Direction:
    """At the base's threshold, whatever the model's own is."""
    source, _, index = shared.id.rpartition(":")
    known = {d.id: d for d in inputs.directions}
    some = next(iter(inputs.directions))
    like = known.get(shared.id, some)
    return Direction(
        source,
        int(index),
        like.layer,
        unit,
        strength=shared.raw if unit == "raw" else shared.resid,
        skip=frozenset(shared.skip),
        positions=like.positions,
    )


def _arm(
    inputs: Inputs,
    arm: str,
    directions: Sequence[Direction],
    count: int,
    factor: float = 1.0,
) -> list[Trial]:
    inputs = replace(inputs, directions=tuple(directions))
    return [
        trial(NAME, arm, inputs, c, [c.direction.add(factor * c.direction.strength)])
        for c in cells(inputs, count)
    ]


def _held_out(design: Design, inputs: Inputs, own: Sequence[Direction]) -> list[Trial]:
    """At the model's own thresholds, and the unsteered twins."""
    skips = {d.id: frozenset(d.skip_held_out) for d in design.directions}
    directions = [replace(d, skip=skips[d.id]) for d in own]
    asked = replace(inputs, questions=design.held_out, directions=tuple(directions))
    return [
        made
        for c in cells(asked, design.per_direction)
        for made in (
            trial(NAME, HELD_OUT, asked, c, [c.direction.add()]),
            trial(NAME, HELD_OUT_PLAIN, asked, c, []),
        )
    ]
