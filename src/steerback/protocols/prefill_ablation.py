"""Text that steering took off topic, continued without steering: with and without the detectors.

Nothing pushes any more, so that what brings an answer back is the model's own doing; and every trial
begins off topic, so that every trial can recover: the most powerful test of the detectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pydantic import Field

from steerback.events import compare_event, either, explicit, silent
from steerback.protocols.base import Analysis, Inputs
from steerback.protocols.bench import Bench
from steerback.protocols.clamping import DETECTORS, clamped_arms, contrasts, forest
from steerback.protocols.drift import DriftSettings, off_topic, per_direction
from steerback.protocols.twins import arms_of
from steerback.records import Record, Records
from steerback.stats import Outcome, summarise
from steerback.tomlfile import Table
from steerback.types import Intervention, Message, Trial, derive_seed

FREE = "not clamped"
EVENTS = (("explicit recovery", explicit), ("silent recovery", silent), ("recovery", either))


class Settings(DriftSettings):
    per_direction: int = Field(
        default=20, ge=1, description="Most texts per direction, of the trials of esr."
    )


class PrefillAblation:
    name = "prefill_ablation"
    asks = "Does an unsteered model recover from off-topic text less if its detectors are clamped?"
    settings: type[Table] = Settings
    needs: tuple[str, ...] = ("esr", "detectors", "matching")

    def before(self, bench: Bench, inputs: Inputs, settings: Table) -> Any:
        own = cast("Settings", settings)

        def drifted(record: Record) -> dict[str, Any] | None:
            text = off_topic(record, own)
            found = {
                "question": record.trial.question,
                "text": text,
                "direction": record.trial.cluster,
                "seed": derive_seed(inputs.seed, self.name, record.trial.key),
            }
            return found if text else None

        return per_direction(bench.records.of("esr"), drifted, own.per_direction)

    def plan(self, inputs: Inputs, settings: Table) -> list[Trial]:
        layer = inputs.directions[0].layer if inputs.directions else 0
        arms: dict[str, list[int]] = {FREE: [], **clamped_arms(inputs)}
        return [
            Trial(
                protocol=self.name,
                arm=arm,
                model=inputs.model,
                question=text["question"],
                messages=(Message("user", text["question"]),),
                sampling=inputs.sampling,
                seed=text["seed"],
                interventions=tuple(
                    Intervention("clamp", inputs.sae, k, 0.0, layer) for k in latents
                ),
                prefill=text["text"],
                variant=inputs.variant,
            )
            for arm, latents in arms.items()
            for text in inputs.found[self.name]
        ]

    def analyse(self, records: Records) -> Analysis:
        found = records.finding(self.name)[1]
        if found is None:
            return Analysis()
        arms = _arms(records, {text["seed"]: text["direction"] for text in found})
        model = records.model(self.name)
        summaries = [
            summarise(outcomes, protocol=self.name, arm=arm, model=model)
            for arm, outcomes in arms.items()
        ]
        compared = [
            (title, compare_event(a, b, event, name))
            for title, a, b in contrasts(arms, FREE)
            for name, event in EVENTS
        ]
        figures = [
            figure
            for name, _ in EVENTS
            for figure in forest(f"What clamping does to {name}", compared, name)
        ]
        return Analysis(tuple(summaries), tuple(compared), charts=tuple(figures))


def _arms(records: Records, directions: Mapping[int, str]) -> dict[str, list[Outcome]]:
    """Outcomes by arm, clustered by the direction that the prefill came from."""
    names = sorted({arm for arm, _ in records.arms("prefill_ablation")}, key=_first_the_free)
    return arms_of(records, "prefill_ablation", names, directions)


def _first_the_free(arm: str) -> tuple[bool, bool, str]:
    return arm != FREE, arm != DETECTORS, arm


PROTOCOL = PrefillAblation()
