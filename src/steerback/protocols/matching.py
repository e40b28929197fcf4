"""Random latents as active as the detectors: the control of every protocol that clamps them."""

from __future__ import annotations

from typing import Any, Literal, cast

import numpy as np
from pydantic import Field

from steerback.errors import UserError
from steerback.matching import Activity, matched_sets
from steerback.protocols.base import Analysis, Entry, Inputs, Sheet
from steerback.protocols.bench import Bench, Pooling
from steerback.protocols.episodes import steered_text
from steerback.records import Records
from steerback.tomlfile import Table
from steerback.types import Trial, derive_seed


class Settings(Table):
    clamp: Literal["before", "after"] = Field(
        default="before",
        description="What every clamp of the run reads and sets. before: the stream as it arrives (as "
        "published). after: the stream with the steering vector added, so that the push goes through "
        "the clamp too.",
    )
    random_sets: int = Field(
        default=3, ge=1, description="Sets of random latents, as active as the detectors."
    )
    neighbours: int = Field(
        default=5,
        ge=0,
        description="Latents nearest to each steered one that no random set may hold.",
    )
    texts: int = Field(
        default=256, ge=1, description="Steered responses that activity is matched on."
    )


class Matching:
    name = "matching"
    asks = "Which random latents are as active on steered text as the detectors?"
    settings: type[Table] = Settings
    needs: tuple[str, ...] = ("esr", "detectors")

    def before(self, bench: Bench, inputs: Inputs, settings: Table) -> Any:
        own = cast("Settings", settings)
        detectors = chosen_detectors(inputs)
        steered = [d.index for d in inputs.directions if d.source == bench.source]
        near = {k for row in bench.nearest(steered, own.neighbours) for k in row}
        excluded = {*steered, *near}
        activity = _activity(bench, inputs, own)
        firing = [k for k in detectors if activity.frequency[k] > 0]
        sets = matched_sets(firing, activity, excluded, own.random_sets, inputs.seed)
        shown = [*firing, *(k for one in sets for k in one)]
        return {
            "clamp": own.clamp,
            "detectors": firing,
            "silent": len(detectors) - len(firing),
            "sets": sets,
            "activity": {
                str(k): [float(activity.frequency[k]), float(activity.mean[k])] for k in shown
            },
            "labels": {str(k): bench.labels[k] for k in shown if k in bench.labels},
            "dead": int((activity.frequency == 0).sum()),
            "excluded": len(excluded),
        }

    def plan(self, inputs: Inputs, settings: Table) -> list[Trial]:
        return []

    def analyse(self, records: Records) -> Analysis:
        found = records.finding(self.name)[1]
        return Analysis() if found is None else Analysis(sheets=(balance(found),))


def chosen_detectors(inputs: Inputs) -> list[int]:
    """Raises UserError where the search found none."""
    found: list[int] = inputs.found["detectors"]["chosen"]
    if not found:
        raise UserError(
            "no latent passes the rule for detectors, so there is nothing to clamp; see "
            "`steerback report`, and choose another rule or a lower bound in a new folder"
        )
    return found


def _activity(bench: Bench, inputs: Inputs, settings: Settings) -> Activity:
    """How active latents are on steered text, where and as a clamp reads them.

    A clamp "before" sees the stream that enters the edit. Edits stand at the steer layer alone, so that
    stream depends on the tokens only: reading the steered responses without interventions gives just
    it. One "after" sees it with the steering vector added.
    """
    after = settings.clamp == "after"
    read = (steered_text(r, steering=after) for r in bench.records.of("esr"))
    texts = [t for t in read if t.response_ids]
    rng = np.random.default_rng(derive_seed(inputs.seed, "matching texts"))
    drawn = [texts[i] for i in rng.permutation(len(texts))[: settings.texts]]
    lengths = np.array([len(t.response_ids) for t in drawn], np.float64)
    pools: tuple[Pooling, ...] = ("active", "mean")
    frequency, mean = (
        lengths @ bench.read(drawn, layer=bench.steer_layer, pool=pool) / lengths.sum()
        for pool in pools
    )
    return Activity(frequency, mean)


def balance(found: Any) -> Sheet:
    """Each detector beside its matches."""
    sets, activity, labels = found["sets"], found["activity"], found["labels"]
    rows = []
    for place, k in enumerate(found["detectors"]):
        row: list[Entry] = [k, labels.get(str(k), ""), *activity[str(k)]]
        for one in sets:
            row += [one[place], *activity[str(one[place])]]
        rows.append(tuple(row))
    columns = ["detector", "label", "fires", "mean"]
    for n in range(1, len(sets) + 1):
        columns += [f"random set {n}", "fires", "mean"]
    notes = [
        "fires: share of tokens of steered responses; mean: over all their tokens, as a clamp reads",
        f"activation taken away, as a share of what the detectors lose: {_shares(found)}",
        f"never drawn: {found['dead']} latents that never fire there, the detectors, and "
        f"{found['excluded']} that are steered or nearest to those",
    ]
    if found["silent"]:
        notes.append(
            f"{found['silent']} detectors never fire there: clamping them does nothing, none matches"
        )
    return Sheet("Random sets and what they match", tuple(columns), tuple(rows), tuple(notes))


def _shares(found: Any) -> str:
    """Summed means of each set over that of the detectors: 1 is a control that takes as much away."""
    own, *others = (
        sum(found["activity"][str(k)][1] for k in s) for s in (found["detectors"], *found["sets"])
    )
    return ", ".join(f"{other / own:.2f}" for other in others) if own else "nothing to take away"


PROTOCOL = Matching()
