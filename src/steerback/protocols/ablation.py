"""The steered trials again, with the detectors clamped to zero: do they cause the restarts?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from pydantic import Field

from steerback.protocols.base import Analysis, Cell, Inputs, Sheet, cells, trial
from steerback.protocols.bench import Bench
from steerback.records import Records
from steerback.standardise import difference_at_equal_first_score
from steerback.stats import Comparison, Outcome, compare, holm
from steerback.tomlfile import Table
from steerback.types import Intervention, Trial

STEERED, DETECTORS, RANDOM, WITHOUT = "steered", "detectors", "random set", "without"
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
        steered = [d.index for d in inputs.directions]
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
        contrasts = {s: [c for c in _contrasts(arms, s) if _share_pairs(c)] for s in ("", HELDOUT)}
        compared = [
            (title, compare(a, b, measure))
            for each in contrasts.values()
            for title, a, b in each
            for measure in MEASURES
        ]
        sheets = [_adjusted(c, s) for s, c in contrasts.items() if c]
        alone = [
            arm
            for arm in arms
            if arm.startswith(WITHOUT) and _share_pairs((arm, arms.get(DETECTORS, []), arms[arm]))
        ]
        if alone:
            sheets.append(_left_out(arms, alone))
        return Analysis(records.summaries(self.name), tuple(compared), tuple(sheets))


# --- plan ------------------------------------------------------------------------------------


def clamped_arms(inputs: Inputs) -> dict[str, list[int]]:
    """The latents that each arm holds at zero."""
    sets = inputs.found["matching"]["sets"]
    return {DETECTORS: inputs.found["detectors"]["chosen"]} | {
        f"{RANDOM} {n}": one for n, one in enumerate(sets, 1)
    }


def clamps(cell: Cell, latents: Sequence[int]) -> list[Intervention]:
    """The cell's direction added, and latents of its SAE held at zero at the same layer."""
    add = cell.direction.add()
    return [add, *(Intervention("clamp", add.source, k, 0.0, add.layer) for k in latents)]


def _replay(
    inputs: Inputs, replayed: Sequence[Cell], arms: Mapping[str, Sequence[int]], sample: str = ""
) -> list[Trial]:
    return [
        trial("ablation", arm + sample, inputs, cell, clamps(cell, latents))
        for arm, latents in arms.items()
        for cell in replayed
    ]


def _heldout(inputs: Inputs) -> Inputs:
    """The same directions with held-out questions, each without those it has to do with."""
    skip = inputs.found["ablation"]["skip"]
    directions = tuple(replace(d, skip=frozenset(skip[d.id])) for d in inputs.directions)
    questions = tuple(inputs.found["detectors"]["heldout"])
    return replace(inputs, questions=questions, directions=directions)


# --- analysis --------------------------------------------------------------------------------

Contrast = tuple[str, Sequence[Outcome], Sequence[Outcome]]
"""(what is compared, the arm it is compared with, the arm)"""


def _contrasts(arms: Mapping[str, Sequence[Outcome]], sample: str) -> Iterator[Contrast]:
    """Each clamped arm against the steered one, and the detectors against the random sets.

    Steered trials cancel from (detectors - steered) - (random - steered), so that the specific effect
    is detectors minus random, over the same pairs. Each pair stands there once for every set.
    """
    base, detectors = arms.get(STEERED + sample, []), arms.get(DETECTORS + sample, [])
    sets = {
        a: o for a, o in arms.items() if a.startswith(RANDOM) and (HELDOUT in a) == bool(sample)
    }
    n = len(sets)
    pooled = [o for i, one in enumerate(sets.values()) for o in _renamed(one, i)]
    yield f"{DETECTORS}{sample}, against {STEERED}", base, detectors
    for arm, one in sets.items():
        yield f"{arm}, against {STEERED}", base, one
    yield f"random sets together{sample}, against {STEERED}", _times(base, n), pooled
    yield f"specific: {DETECTORS}{sample}, against random sets", pooled, _times(detectors, n)


def _share_pairs(contrast: Contrast) -> bool:
    """False while a run has not come to one of the two arms."""
    _, a, b = contrast
    return not {o.pair for o in a}.isdisjoint(o.pair for o in b)


def _renamed(outcomes: Sequence[Outcome], number: int) -> list[Outcome]:
    return [replace(o, pair=f"{o.pair}/{number}") for o in outcomes]


def _times(outcomes: Sequence[Outcome], n: int) -> list[Outcome]:
    """A trial for each set that it is compared with; clusters are resampled whole, copies with them."""
    return [o for number in range(n) for o in _renamed(outcomes, number)]


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
