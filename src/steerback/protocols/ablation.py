"""The steered trials again, with the detectors clamped to zero: do they cause the restarts?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from pydantic import Field

from steerback.protocols.base import Analysis, Cell, Inputs, Sheet, cells, trial
from steerback.protocols.bench import Bench
from steerback.protocols.clamping import (
    DETECTORS,
    Contrast,
    clamped_arms,
    clamps,
    contrasts,
    forest,
)
from steerback.protocols.twins import paired
from steerback.records import Records
from steerback.standardise import difference_at_equal_first_score
from steerback.stats import Comparison, Outcome, compare, holm
from steerback.tomlfile import Table
from steerback.types import Trial

STEERED, WITHOUT = "steered", "without"
HELDOUT = ", held out"
MEASURES = ("multi_attempt", "esr", "first_score")


class Settings(Table):
    prompts_per_direction: int = Field(
        default=10, ge=1, description="Questions per direction: the trials of esr, replayed."
    )
    heldout_prompts_per_direction: int = Field(
        default=10,
        ge=0,
        description="Held-out questions per direction, as a second sample; 0 leaves it out.",
    )
    leave_one_out: int = Field(
        default=0, ge=0, description="Detectors, from the best on, that are left out one at a time."
    )


class Ablation:
    name = "ablation"
    asks = "Does the model restart less when its detectors are held at zero?"
    settings: type[Table] = Settings
    needs: tuple[str, ...] = ("esr", "detectors", "matching")

    def before(self, bench: Bench, inputs: Inputs, settings: Table) -> Any:
        heldout = inputs.found["detectors"]["heldout"]
        steered = [(d.source, d.index) for d in inputs.directions]
        relevant = bench.relevant(heldout, steered)
        return {
            "skip": {
                d.id: [q for q, yes in zip(heldout, column, strict=True) if yes]
                for d, column in zip(inputs.directions, relevant.T, strict=True)
            }
        }

    def plan(self, inputs: Inputs, settings: Table) -> list[Trial]:
        own = cast("Settings", settings)
        arms = clamped_arms(inputs)
        detectors = arms[DETECTORS]
        alone = detectors[: own.leave_one_out] if len(detectors) > 1 else []
        left_out = {f"{WITHOUT} {k}": [j for j in detectors if j != k] for k in alone}
        replayed = list(cells(inputs, own.prompts_per_direction))
        fresh = list(cells(_heldout(inputs), own.heldout_prompts_per_direction))
        return [
            *_replay(inputs, replayed, {**arms, **left_out}),
            *_replay(inputs, fresh, {STEERED: [], **arms}, HELDOUT),
        ]

    def analyse(self, records: Records) -> Analysis:
        arms = {
            arm: [r.outcome for r in records.of(self.name, arm)]
            for arm, _ in records.arms(self.name)
        }
        arms[STEERED] = [r.outcome for r in records.of("esr", STEERED)]
        samples = {s: contrasts(_sample(arms, s), STEERED, s) for s in ("", HELDOUT)}
        compared = [
            (title, compare(a, b, measure))
            for each in samples.values()
            for title, a, b in each
            for measure in MEASURES
        ]
        sheets = [_adjusted(c, s) for s, c in samples.items() if c]
        alone = [
            arm
            for arm in arms
            if arm.startswith(WITHOUT) and paired(arms.get(DETECTORS, []), arms[arm])
        ]
        if alone:
            sheets.append(_left_out(arms, alone))
        figure = forest("What clamping does to restarts", compared, "multi_attempt")
        return Analysis(records.summaries(self.name), tuple(compared), tuple(sheets), figure)


# --- plan ------------------------------------------------------------------------------------


def _replay(
    inputs: Inputs, replayed: Sequence[Cell], arms: Mapping[str, Sequence[int]], sample: str = ""
) -> list[Trial]:
    return [
        trial("ablation", arm + sample, inputs, cell, [add, *clamps(inputs, latents, add)])
        for arm, latents in arms.items()
        for cell in replayed
        for add in [cell.direction.add()]
    ]


def _heldout(inputs: Inputs) -> Inputs:
    """The same directions with held-out questions, each without those it has to do with."""
    skip = inputs.found["ablation"]["skip"]
    directions = tuple(replace(d, skip=frozenset(skip[d.id])) for d in inputs.directions)
    questions = tuple(inputs.found["detectors"]["heldout"])
    return replace(inputs, questions=questions, directions=directions)


# --- analysis --------------------------------------------------------------------------------


def _sample(arms: Mapping[str, list[Outcome]], sample: str) -> dict[str, list[Outcome]]:
    """Arms of one sample, by their names without it."""
    return {
        a.removesuffix(HELDOUT): o for a, o in arms.items() if a.endswith(HELDOUT) == bool(sample)
    }


def _adjusted(contrasts: Sequence[Contrast], sample: str) -> Sheet:
    rows = tuple((title, difference_at_equal_first_score(a, b)) for title, a, b in contrasts)
    return Sheet(
        f"Multi-attempt rate at equal first score{sample}",
        ("arm", "difference"),
        rows,
        (
            "each arm's rates within fifths of the first score, averaged over one mix of first scores",
        ),
    )


def _left_out(arms: Mapping[str, Sequence[Outcome]], names: Sequence[str]) -> Sheet:
    """What happens when one detector is not clamped: what the others do without it."""
    results: list[Comparison] = [
        compare(arms[DETECTORS], arms[arm], "multi_attempt") for arm in names
    ]
    adjusted = holm([c.p for c in results])
    rows = tuple(
        (int(arm.split()[1]), c.a, c.b, c.difference, float(p))
        for arm, c, p in zip(names, results, adjusted, strict=True)
    )
    return Sheet(
        "Detectors left out one at a time",
        ("not clamped", "all clamped", "without it", "difference", "p (Holm)"),
        rows,
        ("multi-attempt rates; a large difference: the others do not do what this one does",),
    )


PROTOCOL = Ablation()
