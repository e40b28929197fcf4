"""What compared runs hold, as outcomes by model and arm, paired by direction, question and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from steerback.errors import UserError
from steerback.finetune import design
from steerback.finetune.compare import ARTIFACT, BASE, MAIN, TOLD, Model
from steerback.finetune.design import Design
from steerback.finetune.perplexity import Told
from steerback.protocols.twins import paired
from steerback.records import Records
from steerback.stats import Comparison, Outcome, Summary, compare, summarise
from steerback.store import Store

UNSEEN, SEEN, HELD_OUT, PLAIN = (
    "held-out directions",
    "directions trained along",
    "held-out directions and questions",
    "unsteered",
)


@dataclass(frozen=True)
class Evidence:
    """Outcomes of all models, `by[model][arm]`."""

    models: tuple[Model, ...]
    design: Design
    by: dict[str, dict[str, list[Outcome]]]
    told: dict[str, list[Told]]
    """Log probabilities of the base's answers, by model."""
    norms: dict[str, float]
    """Median residual norm at the steer layer, by model."""

    @property
    def names(self) -> list[str]:
        return [m.name for m in self.models]

    @property
    def tuned(self) -> list[Model]:
        return [m for m in self.models if m.name != BASE]

    def arms(self) -> list[str]:
        """Those that any model has, in the order of the base."""
        return list(dict.fromkeys(arm for arms in self.by.values() for arm in arms))

    def summary(self, model: str, arm: str) -> Summary:
        return summarise(self.by[model].get(arm, []), protocol=design.NAME, arm=arm, model=model)

    def difference(self, a: str, b: str, arm: str, measure: str) -> Comparison | None:
        """Model b against model a; None where they share no trial."""
        left, right = (self.by[m].get(arm, []) for m in (a, b))
        return compare(left, right, measure) if paired(left, right) else None

    def contrasts(self) -> list[tuple[str, str]]:
        """(a, b): each tuned model against the base, then each against those before it."""
        tuned = [m.name for m in self.tuned]
        against_base = [(BASE, name) for name in tuned]
        return against_base + [(a, b) for n, b in enumerate(tuned) for a in tuned[:n]]


def read(folder: Path, models: Sequence[Model], judge: str = "") -> Evidence:
    """Raises UserError if a model's run is not there."""
    by: dict[str, dict[str, list[Outcome]]] = {}
    told: dict[str, list[Told]] = {}
    norms: dict[str, float] = {}
    shared: Design | None = None
    for model in models:
        place = folder / model.name
        if not (place / MAIN).is_dir():
            raise UserError(f"{place} holds no run of {model.name}; run the comparison again")
        by[model.name] = {}
        for condition in sorted(place.iterdir()):
            if not condition.is_dir():
                continue
            with Store.open(condition, mode="ro") as store:
                if condition.name == MAIN:
                    stored = store.get_artifact(ARTIFACT)
                    if stored is None:
                        raise UserError(f"{condition} is not finished; run the comparison again")
                    shared = shared or Design.from_json(stored)
                    told[model.name] = [Told(*t) for t in store.get_artifact(TOLD, [])]
                    norms[model.name] = store.get_artifact("residual_norm")["median"]
                    by[model.name] |= _main(Records(store, judge), shared)
                else:
                    name = condition.name.replace("-", " ")
                    by[model.name][name] = _outcomes(Records(store, judge), "esr", "steered")
    assert shared is not None
    return Evidence(tuple(models), shared, by, told, norms)


def _main(records: Records, shared: Design) -> dict[str, list[Outcome]]:
    seen = {d.id for d in shared.directions if d.seen}
    steered = _outcomes(records, "esr", "steered")
    out = {
        UNSEEN: [o for o in steered if o.cluster not in seen],
        SEEN: [o for o in steered if o.cluster in seen],
    }
    held_out = _outcomes(records, design.NAME, design.HELD_OUT)
    out[HELD_OUT] = [o for o in held_out if o.cluster not in seen]
    out[PLAIN] = [
        *_outcomes(records, "baseline", "unsteered"),
        *_outcomes(records, design.NAME, design.HELD_OUT_PLAIN),
    ]
    for arm in (*(design.dose(f) for f in shared.factors), design.NORMS, design.WANTED):
        out[arm] = [o for o in _outcomes(records, design.NAME, arm) if o.cluster not in seen]
    for arm, _ in records.arms("prefill"):
        out[f"prefill, {arm}"] = _outcomes(records, "prefill", arm)
    return {arm: outcomes for arm, outcomes in out.items() if outcomes}


def _outcomes(records: Records, protocol: str, arm: str) -> list[Outcome]:
    """Twins across models are the trials of one direction, question and seed, at any strength."""
    found: dict[str, Outcome] = {}
    for r in records.of(protocol, arm):
        pair = f"{r.trial.cluster}/{r.trial.question}/{r.trial.seed}"
        found.setdefault(pair, replace(r.outcome, pair=pair))
    return list(found.values())
