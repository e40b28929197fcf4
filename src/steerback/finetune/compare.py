"""A base and models tuned from it, measured alike: one run folder each, one paired analysis.

A run has one model, so each model has a run of its own, made from one design: the base chooses the
directions and tells the strengths that all share.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from steerback import latents as choosing
from steerback import protocols
from steerback.config import FREE_KEYS, RunConfig
from steerback.engine.choice import in_process
from steerback.errors import UserError
from steerback.finetune import design, perplexity, work
from steerback.finetune.design import Design, Shared
from steerback.instruments import Instruments
from steerback.lab import SOURCE, VECTORS, Lab
from steerback.preparation import choose, prepare
from steerback.prompts import counterpart, load_prompts
from steerback.protocols.base import Direction, Inputs
from steerback.run import perform
from steerback.store import Store
from steerback.types import derive_seed
from steerback.ui import Ui
from steerback.vectors import VectorSet

BASE = "base"
MAIN, RANDOM = "main", "random directions"
MAIN_PROTOCOLS = ("baseline", "esr", "prefill")
ARTIFACT, TOLD = "finetune/design", "finetune/perplexity"
_CANDIDATES = 4
"""Latents that the base's rules choose among, per latent wanted."""


@dataclass(frozen=True)
class Model:
    """One of the compared."""

    name: str
    path: str
    record: dict[str, Any] | None = None
    """How it was tuned; None for the base."""


@dataclass(frozen=True)
class Wanted:
    base: RunConfig
    tuned: tuple[Path, ...]
    folder: Path
    latents: int = 24
    """Directions that no tuned model was trained along."""
    seen: int = 8
    """Directions that some were trained along, besides."""
    per_direction: int = 8
    """Questions per direction and arm."""
    factors: tuple[float, ...] = (0.5, 0.75, 1.0, 1.5)
    layers: tuple[int, ...] = ()
    """Other layers to steer."""
    random: int = 12
    """Random directions; 0: none are tried."""
    held_out: str = "auto"
    """Set of held-out questions; auto: the packaged counterpart of the run's."""

    def models(self) -> list[Model]:
        found = [Model(BASE, self.base.model.source)]
        known = {_where(self.base.model.source), *(_where(f / work.MERGED) for f in self.tuned)}
        for folder in self.tuned:
            path = folder / work.RECORD
            if not path.is_file():
                raise UserError(
                    f"{folder} holds no finished training; `steerback finetune train` makes one"
                )
            record = json.loads(path.read_text("utf-8"))
            source = record["base"]["source"]
            if _where(source) not in known:
                raise UserError(
                    f"{folder} was tuned from {source}, which is not compared; compare it with its "
                    "own base"
                )
            found.append(Model(folder.name, str(folder / work.MERGED), record))
        names = [m.name for m in found]
        if len(set(names)) < len(names):
            raise UserError(f"two models are called alike ({', '.join(names)}); rename a folder")
        return found

    def conditions(self) -> list[str]:
        other = [f"layer {layer}" for layer in self.layers]
        return [MAIN, *([RANDOM] if self.random else []), *other]

    def place(self, model: Model, condition: str) -> Path:
        return self.folder / model.name / condition.replace(" ", "-")


def _where(source: str | Path) -> str:
    """The folder, or the name of what is not one."""
    return str(Path(source).resolve()) if Path(source).is_dir() else str(source)


def run(wanted: Wanted, ui: Ui | None = None) -> None:
    """Make every run that is missing. Run it again to resume."""
    ui = ui or Ui()
    models = wanted.models()
    shared: Design | None = None
    answers: list[tuple[str, str]] = []
    for model in models:
        shared, answers = _main(wanted, model, models, shared, answers, ui)
    for condition in wanted.conditions()[1:]:
        for model in models:
            _other(wanted, model, condition, ui)


def configuration(wanted: Wanted, model: Model, condition: str) -> RunConfig:
    """One run. Its model goes by the name of the tuned one, so that calibrations are its own."""
    base = wanted.base
    main = condition == MAIN
    names = MAIN_PROTOCOLS if main else ("esr",)
    amount = {"prompts_per_direction": wanted.per_direction}
    settings: dict[str, Any] = {"baseline": amount, "esr": amount, "prefill": {}}
    place = wanted.place(model, condition)
    changes: dict[str, Any] = {
        "name": model.name if main else f"{model.name}, {condition}",
        "folder": str(place),
        "protocols": list(names),
        "model": base.model.model_copy(update={"name": model.name, "path": model.path}),
        "settings": {
            n: protocols.get(n).settings.model_validate(settings[n]).model_dump() for n in names
        },
    }
    if condition == RANDOM:
        file, count = str(wanted.folder / "random.safetensors"), wanted.random
        changes["directions"] = base.directions.model_copy(
            update={"vectors": file, "count": count, "indices": []}
        )
    if condition.startswith("layer "):
        layer = int(condition.removeprefix("layer "))
        changes["model"] = changes["model"].model_copy(update={"steer_layer": layer})
    return base.model_copy(update=changes)


def _main(
    wanted: Wanted,
    model: Model,
    models: Sequence[Model],
    shared: Design | None,
    answers: list[tuple[str, str]],
    ui: Ui,
) -> tuple[Design, list[tuple[str, str]]]:
    """The run of one model at the steer layer; the design, and the base's unsteered answers."""
    config = configuration(wanted, model, MAIN)
    with Store.open(config.place, config.model_dump(mode="json"), free=FREE_KEYS) as store:
        lab = Lab.open(config, store, ui)
        if shared is None:
            _choose(lab, wanted, models)
            _random_file(lab, wanted)
        else:
            _adopt(lab, wanted)
        inputs = prepare(lab)
        for name in config.protocols:
            inputs = perform(lab, protocols.get(name), inputs, config.protocols)
        if not inputs.directions:
            raise UserError(f"no direction reaches the target on {model.name}; see {config.place}")
        shared = shared or _design(lab, wanted, models, inputs)
        stored = store.get_artifact(ARTIFACT)
        if stored not in (None, shared.as_json()):
            raise UserError(f"{config.place} was made with another design; choose another --folder")
        store.put_artifact(ARTIFACT, shared.as_json())
        trials = design.trials(shared, inputs)
        ui.stage(f"{model.name}, what all models share: {len(trials)} trials")
        lab.execute(trials, design.NAME, implicit=True)
        answers = answers or _answers(lab)
        if store.get_artifact(TOLD) is None:
            told = perplexity.score(in_process(lab.engine), answers)
            store.put_artifact(TOLD, [[t.question, t.nats, t.tokens] for t in told])
    return shared, answers


def _other(wanted: Wanted, model: Model, condition: str, ui: Ui) -> None:
    config = configuration(wanted, model, condition)
    with Store.open(config.place, config.model_dump(mode="json"), free=FREE_KEYS) as store:
        lab = Lab.open(config, store, ui)
        if condition != RANDOM:
            _adopt(lab, wanted)
        inputs = prepare(lab)
        for name in config.protocols:
            inputs = perform(lab, protocols.get(name), inputs, config.protocols)


# --- directions ------------------------------------------------------------------------------


def _choose(lab: Lab, wanted: Wanted, models: Sequence[Model]) -> None:
    """Latents by the base's rules, of which `wanted.latents` were never trained along."""
    if lab.store.get_artifact("latents") is not None:
        return
    config = lab.config
    many = _CANDIDATES * (wanted.latents + wanted.seen)
    directions = config.directions.model_copy(update={"count": many})
    lab.config = config.model_copy(update={"directions": directions})
    chosen = choose(lab)
    lab.config = config
    trained = trained_along(models)
    fresh = [c for c in chosen if f"{c.source}:{c.index}" not in trained][: wanted.latents]
    seen = [c for c in chosen if f"{c.source}:{c.index}" in trained][: wanted.seen]
    if not fresh:
        raise UserError(
            "every latent that the base's rules choose was trained along; hold more of them out "
            "(steering.held_out)"
        )
    lab.store.put_artifact("latents", choosing.as_json([*fresh, *seen]))


def _adopt(lab: Lab, wanted: Wanted) -> None:
    """The base's choice of latents."""
    base = wanted.place(Model(BASE, ""), MAIN)
    with Store.open(base, mode="ro") as store:
        for name in ("latents", "funnel"):
            lab.store.put_artifact(name, store.get_artifact(name))


def trained_along(models: Sequence[Model]) -> set[str]:
    """Directions that some model was trained along, as `source:index`."""
    out: set[str] = set()
    for model in models:
        used = (model.record or {}).get("steering") or {}
        out |= {f"{used['source']}:{k}" for k in used.get("indices", ())}
    return out


def _random_file(lab: Lab, wanted: Wanted) -> None:
    """Random directions of the median norm of the SAE's, the same for every model."""
    to = wanted.folder / "random.safetensors"
    if not wanted.random or to.exists():
        return
    sae = lab.engine.sources[SOURCE]
    some = sae.directions(range(min(sae.n, 256)))
    seed = derive_seed(lab.config.seed, "random directions, compared") % 2**62
    drawn = torch.randn(wanted.random, sae.d_model, generator=torch.Generator().manual_seed(seed))
    norm = some.norm(dim=1).median()
    vectors = norm * torch.nn.functional.normalize(drawn, dim=1)
    names = [f"random {n}" for n in range(1, wanted.random + 1)]
    VectorSet(VECTORS, vectors, names).save(to)


# --- what all models share -------------------------------------------------------------------


def _design(lab: Lab, wanted: Wanted, models: Sequence[Model], inputs: Inputs) -> Design:
    """From the base's run, or as it is stored there."""
    stored = lab.store.get_artifact(ARTIFACT)
    if stored is not None:
        made = Design.from_json(stored)
        if (made.factors, made.per_direction) != (wanted.factors, wanted.per_direction):
            raise UserError(
                f"{lab.store.folder} was made with other doses or numbers of questions; choose "
                "another --folder"
            )
        return made
    spec = counterpart(wanted.base.prompts) if wanted.held_out == "auto" else wanted.held_out
    if not spec:
        raise UserError(
            f"no packaged set belongs to the questions {wanted.base.prompts!r}; name held-out ones "
            "with --held-out"
        )
    questions = load_prompts(spec).questions
    pairs = [(d.source, d.index) for d in inputs.directions]
    related = Instruments(lab).relevant(questions, pairs)
    trained = trained_along(models)
    shared = [
        _shared(
            lab, d, d.id in trained, [q for q, yes in zip(questions, column, strict=True) if yes]
        )
        for d, column in zip(inputs.directions, related.T, strict=True)
    ]
    return Design(inputs.questions, questions, tuple(shared), wanted.factors, wanted.per_direction)


def _shared(lab: Lab, direction: Direction, seen: bool, skip_held_out: Sequence[str]) -> Shared:
    packer = lab.engine.packer
    raw = packer.strength(direction.add())
    length = float(packer.direction(direction.source, direction.index).norm())
    return Shared(
        direction.id,
        raw,
        raw * length / lab.engine.norms[direction.layer],
        seen,
        tuple(sorted(direction.skip)),
        tuple(skip_held_out),
    )


def _answers(lab: Lab) -> list[tuple[str, str]]:
    """The model's own unsteered answers, one per question."""
    found: dict[str, str] = {}
    for trial, generation in lab.store.trials(protocol="baseline"):
        if generation.finish_reason != "length":
            found.setdefault(trial.question, generation.text)
    return sorted(found.items())
