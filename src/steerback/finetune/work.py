"""One training from its inputs to its folders: base model, rows, steering, adapter, card."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerback import protocols, steer
from steerback.config import RunConfig
from steerback.engine.choice import in_process
from steerback.engine.hf import HFEngine
from steerback.errors import UserError, nearest
from steerback.finetune import adapters, card, order, overlap, pushes
from steerback.finetune.encoding import Encoder
from steerback.finetune.forward import Forward
from steerback.finetune.pushes import Pushes
from steerback.finetune.rows import Row, digest, read
from steerback.finetune.settings import SteeringSettings, TrainSettings
from steerback.finetune.training import CHECKPOINT, Curve, Progress, Sample, Trainer
from steerback.lab import SOURCE, VECTORS, fingerprint, labels_of, load_engine
from steerback.lock import FolderLock
from steerback.outfile import written
from steerback.preparation import NORM_QUESTIONS
from steerback.presets import find_preset, from_anywhere, load_or_preset, presets
from steerback.prompts import load_prompts
from steerback.provenance import environment
from steerback.sae.source import hash_files
from steerback.types import stable_hash
from steerback.vectors import VectorSet

NO_SAE = "none"
RECORD = "finetune.json"
"""File of a finished training that says how it was made."""
MERGED = "merged"
_SMOOTH = 20
"""Steps at the beginning and at the end over which the loss is averaged."""


@dataclass(frozen=True)
class Job:
    """What one training is made of."""

    base: RunConfig
    rows: Path
    folder: Path
    settings: TrainSettings
    command: str = ""
    """As the model card tells it."""
    against: tuple[str, ...] = ()
    """Sets of evaluation questions besides the packaged ones."""


def base_of(spec: str) -> RunConfig:
    """A configuration file, a preset, or a Hugging Face id or folder that comes without an SAE."""
    if Path(spec).is_file() or find_preset(spec) is not None:
        return load_or_preset(spec, protocols.settings())
    if Path(spec).is_dir() or spec.count("/") == 1:
        return from_anywhere(spec, NO_SAE, 0)
    raise UserError(f"no model or configuration {spec!r}; {nearest(spec, presets())}")


def train(
    job: Job,
    say: Callable[[str], None] = lambda line: None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Any]:
    """Train, or go on with what was begun in the folder; the record of what was made.

    Raises UserError: rows that cannot be read or ask evaluation questions, a model that cannot be
    loaded, a folder of another training.
    """
    rows = read(job.rows)
    evaluation = overlap.evaluation_questions((*job.against, job.base.prompts))
    overlap.refuse_shared([r.question for r in rows], evaluation, f"{job.rows}: row")
    chosen = order.mixed(rows, job.settings.share, job.settings.most, job.settings.seed)
    parts = order.split(chosen, job.settings.validation, job.settings.seed)
    say(f"loading {job.base.model.source}")
    loaded = _loaded(job)
    # from here on, so that a mistake above leaves nothing behind
    with written(job.folder):
        job.folder.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(job.folder)
    try:
        return _train(job, parts, loaded, say, report)
    finally:
        lock.release()


def _train(
    job: Job,
    parts: tuple[list[Row], list[Row]],
    loaded: tuple[HFEngine, dict[str, Any]],
    say: Callable[[str], None],
    report: Callable[[Progress], None],
) -> dict[str, Any]:
    (training, validation), (engine, facts) = parts, loaded
    identity = stable_hash(
        [facts, digest(job.rows), job.settings.model_dump(mode="json", exclude={"checkpoint"})]
    )
    if (done := _finished(job.folder, identity)) is not None:
        say(f"{job.folder} is finished already")
        return done
    live, packer = _steering(job, engine, training, say)
    encoder = Encoder(
        engine.tokenizer,
        trained=job.settings.trained,
        sentence_weight=job.settings.sentence_weight,
        longest=min(job.settings.longest, engine.backend.context),
    )
    samples, checks = (
        _encoded(encoder, part, str(job.rows), job.settings.steering)
        for part in (training, validation)
    )
    # the fused decoder's copies of the weights have done their work
    engine.backend = engine.hooked
    model = adapters.trainable(engine.model, job.settings)
    trainer = Trainer(
        Forward(
            model, packer, live.layers if live else (), _follows(job.settings.steering, training)
        ),
        job.settings,
        samples,
        checks,
        pushes=live,
        pad=engine.tokenizer.pad_token_id or 0,
        identity=identity,
    )
    say(f"training on {len(training):,} rows, {trainer.total:,} steps")
    started = time.monotonic()
    curve = trainer.run(job.folder, report)
    record = _record(job, facts, training, validation, curve)
    record["steering"] = _steered(live, engine, trainer)
    record |= {"identity": identity, "minutes": round((time.monotonic() - started) / 60, 2)}
    adapters.save(model, engine.tokenizer, job.folder)
    return _conclude(job, record, curve)


def _loaded(job: Job) -> tuple[HFEngine, dict[str, Any]]:
    """The base, with its SAE if it is steered along latents."""
    own, model = job.settings.steering, job.base.model
    if job.base.sae.spec != NO_SAE:
        loaded, facts = load_engine(job.base, model.slots)
        return in_process(loaded), facts
    if own is not None and own.directions in ("sae", "row"):
        raise UserError(
            f"{model.name} comes without an SAE; steer along random directions or vectors, or give "
            "a configuration (`steerback init`)"
        )
    if own is not None and not own.layers:
        raise UserError(f"{model.name} has no layer to steer; set steering.layers (--layer)")
    engine = HFEngine.load(model.source, name=model.name, dtype=model.dtype, backend="transformers")
    return engine, {"model_hash": fingerprint(model.source, engine.config)}


def _finished(folder: Path, identity: str) -> dict[str, Any] | None:
    path = folder / RECORD
    if not path.is_file():
        return None
    record: dict[str, Any] = json.loads(path.read_text("utf-8"))
    if record["identity"] != identity:
        raise UserError(
            f"{folder} holds a training of other rows, settings or model; choose another folder"
        )
    return record


def _encoded(
    encoder: Encoder, rows: Sequence[Row], where: str, steering: SteeringSettings | None
) -> list[Sample]:
    """Rows in those of the ways that the settings may train them in."""
    clean = steering is not None and steering.target == "clean"
    along = steering is not None and not clean and steering.go_along
    out = []
    for n, row in enumerate(rows, 1):
        own = encoder(row, f"{where}: row {n} ({row.question[:40]!r})")
        if not row.correction or steering is None:
            out.append(Sample(row, own, own, own))
            continue
        out.append(
            Sample(
                row,
                own,
                encoder(row.clean()) if clean else own,
                encoder.along(row) if along else own,
            )
        )
    return out


# --- steering --------------------------------------------------------------------------------


def _steering(
    job: Job, engine: HFEngine, rows: Sequence[Row], say: Callable[[str], None]
) -> tuple[Pushes | None, steer.Packer | None]:
    """Directions and the packer of a training under steering; none of both without."""
    own = job.settings.steering
    if own is None:
        return None, None
    source, candidates = _directions(job, own, engine)
    layers = own.layers or [job.base.model.steer_layer]
    if own.directions == "row":
        trained, held_out, layers = pushes.of_rows(rows, candidates)
    else:
        trained, held_out = pushes.kept(candidates, own.held_out, job.settings.seed)
    questions = load_prompts(job.base.prompts).questions[:NORM_QUESTIONS]
    for layer in layers:
        engine.check_layer(layer, "steering.layers")
        if own.unit == "resid" or own.directions == "row":
            norm = engine.measure_norm(layer, questions)
            say(f"median residual norm of layer {layer}: {norm:.4g}")
    live = Pushes(own, source, trained, layers, job.settings.seed, held_out)
    packer = steer.Packer(
        engine.sources,
        device=engine.backend.device,
        dtype=engine.backend.dtype,
        norms=dict(engine.norms),
    )
    return live, packer


def _follows(steering: SteeringSettings | None, rows: Sequence[Row]) -> bool:
    """Whether strengths are in units of the norm of the pass itself."""
    if steering is None or steering.norm != "pass":
        return False
    if steering.directions == "row":
        return all(r.push is None or r.push.unit == "resid" for r in rows)
    return steering.unit == "resid"


def _directions(
    job: Job, own: SteeringSettings, engine: HFEngine
) -> tuple[str, list[pushes.Candidate]]:
    if own.directions == "random":
        engine.add_source(
            pushes.random_vectors(own.random, engine.backend.d_model, job.settings.seed)
        )
        return pushes.RANDOM, [pushes.Candidate(k, "") for k in range(own.random)]
    if own.directions == "vectors":
        if not own.vectors:
            raise UserError(
                "steering.directions = 'vectors' needs steering.vectors, a file of them"
            )
        vectors = VectorSet.load(own.vectors, VECTORS)
        engine.add_source(vectors)
        return VECTORS, pushes.of_vectors(vectors)
    found = pushes.latents(
        engine.sources[SOURCE], labels_of(job.base), job.base.directions.concreteness_min
    )
    return SOURCE, found


# --- what is left behind ---------------------------------------------------------------------


def _record(
    job: Job,
    facts: dict[str, Any],
    training: Sequence[Row],
    validation: Sequence[Row],
    curve: Curve,
) -> dict[str, Any]:
    corrections = sum(r.correction for r in training)
    return {
        "command": job.command,
        "base": {"name": job.base.model.name, "source": job.base.model.source, **facts},
        "data": {
            "file": job.rows.name,
            "sha256": digest(job.rows),
            "rows": len(training),
            "corrections": corrections,
            "share": corrections / len(training),
            "validation_rows": len(validation),
            "sources": sorted({r.source for r in training if r.source}),
        },
        "settings": job.settings.model_dump(mode="json"),
        "loss": {
            "first": _mean(curve.train[:_SMOOTH]),
            "last": _mean(curve.train[-_SMOOTH:]),
            "validation": curve.validation[-1]["loss"] if curve.validation else None,
        },
        "made_with": environment(),
    }


def _steered(live: Pushes | None, engine: HFEngine, trainer: Trainer) -> dict[str, Any] | None:
    if live is None:
        return None
    return {
        **live.used(),
        "norms": {str(k): v for k, v in engine.norms.items()},
        "norms_at_last": {str(k): v for k, v in trainer.forward.norms.items()},
    }


def _mean(entries: Sequence[dict[str, float]]) -> float:
    return sum(e["loss"] for e in entries) / len(entries)


def _conclude(job: Job, record: dict[str, Any], curve: Curve) -> dict[str, Any]:
    weights = sorted((job.folder / MERGED).glob("*.safetensors"))
    record["sha256"] = hash_files(weights)
    lines = [{"kind": k, **entry} for k in ("train", "validation") for entry in getattr(curve, k)]
    (job.folder / "loss.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines), "utf-8")
    (job.folder / MERGED / "README.md").write_text(card.text(record), "utf-8")
    # last: it says that all the rest is there
    (job.folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    (job.folder / CHECKPOINT).unlink(missing_ok=True)
    return record
