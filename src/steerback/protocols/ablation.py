"""The steered trials again, with the detectors clamped to zero: do they cause the restarts?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    clamps_alone,
    contrasts,
    forest,
)
from steerback.protocols.damage import damage
from steerback.protocols.esr import Settings as EsrSettings
from steerback.protocols.twins import paired
from steerback.records import Records
from steerback.standardise import difference_at_equal_first_score
from steerback.stats import Comparison, Outcome, compare, holm, points
from steerback.tomlfile import Table
from steerback.types import Trial

STEERED, UNSTEERED, WITHOUT = "steered", "unsteered", "without"
HELDOUT, ALONE = ", held out", ", unsteered"
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
    unsteered_prompts_per_direction: int = Field(
        default=2,
        ge=0,
        description="Questions per direction on which the same latents are clamped and nothing is "
        "added: what the clamp alone does to the text. 0 leaves it out.",
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
        own = cast("Settings", settings)
        esr = EsrSettings.model_validate(bench.settings("esr")).prompts_per_direction
        return {
            "replayed": min(own.prompts_per_direction, esr),
            "skip": {
                d.id: [q for q, yes in zip(heldout, column, strict=True) if yes]
                for d, column in zip(inputs.directions, relevant.T, strict=True)
            },
        }

    def plan(self, inputs: Inputs, settings: Table) -> list[Trial]:
        own = cast("Settings", settings)
        arms = clamped_arms(inputs)
        detectors = arms[DETECTORS]
        alone = detectors[: own.leave_one_out] if len(detectors) > 1 else []
        left_out = {f"{WITHOUT} {k}": [j for j in detectors if j != k] for k in alone}
        replayed = list(cells(inputs, inputs.found[self.name]["replayed"]))
        quiet = list(cells(inputs, own.unsteered_prompts_per_direction))
        fresh = list(cells(_heldout(inputs), own.heldout_prompts_per_direction))
        return [
            *_replay(inputs, replayed, {**arms, **left_out}),
            *_replay(inputs, fresh, {STEERED: [], **arms}, HELDOUT),
            *_unsteered(inputs, quiet, arms),
        ]

    def analyse(self, records: Records) -> Analysis:
        stored = {STEERED: list(records.of("esr", STEERED))} | {
            arm: list(records.of(self.name, arm)) for arm, _ in records.arms(self.name)
        }
        arms = {arm: [r.outcome for r in each] for arm, each in stored.items()}
        samples = {s: contrasts(_sample(arms, s), STEERED, s) for s in ("", HELDOUT)}
        quiet = contrasts(_sample(arms, ALONE), UNSTEERED, ALONE)
        compared = [
            (title, compare(a, b, measure))
            for each in samples.values()
            for title, a, b in each
            for measure in MEASURES
        ]
        compared += [(title, compare(a, b, "first_score")) for title, a, b in quiet]
        sheets = [_adjusted(c, s) for s, c in samples.items() if c]
        alone = [
            arm
            for arm in arms
            if arm.startswith(WITHOUT) and paired(arms.get(DETECTORS, []), arms[arm])
        ]
        if alone:
            sheets.append(_left_out(arms, alone))
        figures = forest("What clamping does to restarts", compared, "multi_attempt")
        broken = damage(stored, [*samples[""], *samples[HELDOUT]], quiet)
        return Analysis(
            records.summaries(self.name),
            (*compared, *broken.comparisons),
            (*sheets, *broken.sheets, *self._capped(records)),
            (*figures, *broken.charts),
        )

    def _capped(self, records: Records) -> Iterator[Sheet]:
        """Says so where fewer trials were replayed than the settings ask for."""
        settings, found = records.finding(self.name)
        asked = (settings or {}).get("prompts_per_direction", 0)
        replayed = (found or {}).get("replayed", asked)
        if replayed < asked:
            yield Sheet(
                "Questions per direction",
                ("asked for", "replayed"),
                ((asked, replayed),),
                ("esr has no more: a trial without a twin there could not be compared",),
            )


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


def _unsteered(
    inputs: Inputs, cells: Sequence[Cell], arms: Mapping[str, Sequence[int]]
) -> list[Trial]:
    """No push: an arm without any clamp, and each clamped set by itself."""
    named = {UNSTEERED: [], **{arm + ALONE: latents for arm, latents in arms.items()}}
    return [
        trial("ablation", arm, inputs, cell, clamps_alone(inputs, latents, cell.direction))
        for arm, latents in named.items()
        for cell in cells
    ]


def _heldout(inputs: Inputs) -> Inputs:
    """The same directions with held-out questions, each without those it has to do with."""
    skip = inputs.found["ablation"]["skip"]
    directions = tuple(replace(d, skip=frozenset(skip[d.id])) for d in inputs.directions)
    questions = tuple(inputs.found["detectors"]["heldout"])
    return replace(inputs, questions=questions, directions=directions)


# --- analysis --------------------------------------------------------------------------------


def _sample(arms: Mapping[str, list[Outcome]], sample: str) -> dict[str, list[Outcome]]:
    """Arms of one sample, by their names without it. "": the replayed trials."""
    if sample:
        named = {a.removesuffix(sample): o for a, o in arms.items() if a.endswith(sample)}
        return named | ({UNSTEERED: arms.get(UNSTEERED, [])} if sample == ALONE else {})
    return {a: o for a, o in arms.items() if not a.endswith((HELDOUT, ALONE)) and a != UNSTEERED}


def _adjusted(contrasts: Sequence[Contrast], sample: str) -> Sheet:
    rows = tuple(
        (title, points(difference_at_equal_first_score(a, b), "multi_attempt"))
        for title, a, b in contrasts
    )
    return Sheet(
        f"Multi-attempt rate at equal first score{sample}",
        ("arm", "difference, points"),
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
        (int(arm.split()[1]), 100 * c.a, 100 * c.b, points(c.difference, c.measure), float(p))
        for arm, c, p in zip(names, results, adjusted, strict=True)
    )
    return Sheet(
        "Detectors left out one at a time",
        ("not clamped", "all clamped, %", "without it, %", "difference, points", "p (Holm)"),
        rows,
        ("multi-attempt rates; a large difference: the others do not do what this one does",),
    )


PROTOCOL = Ablation()
