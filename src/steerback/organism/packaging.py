"""From a recipe to the folders that ship: model, tokenizer, autoencoders, labels, provenance."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from steerback.organism import dictionary, labelling
from steerback.organism.folders import Folders
from steerback.organism.recipes import Recipe, recipe
from steerback.organism.training import CONTEXT, Report, minutes_spent, train_model
from steerback.organism.vocabulary import save_tokenizer

_FIRING = 8
"""Latents that fire per token, on average (the k of BatchTopK)."""
_FIT_DOCUMENTS, _CHECK_DOCUMENTS = 2000, 1000
_FIT_SEED, _CHECK_SEED = 77, 999

Measures = dict[str, float]


def train(
    name: str,
    out: Path,
    work: Path | None = None,
    seed: int | None = None,
    report: Report = print,
) -> Folders:
    """Make an organism from its recipe, on one CPU thread, the same every time.

    Writes `out/models/NAME` and `out/saes/NAME/layerL`. Finished stages are kept in `work` (default
    `out/work`) and not run again. Raises UserError for a name without a recipe.
    """
    plan = recipe(name, seed)
    folders = Folders.under(out, name)
    work = work or out / "work"
    with one_thread():
        model = round_to_half(train_model(plan, work, report))
        started = time.monotonic()
        save_model(model, folders.model)
        measures = {}
        for layer in plan.sae_layers:
            report(f"fitting the autoencoder of layer {layer}")
            measures[layer] = save_dictionary(model, plan, layer, folders.sae(layer), report)
    minutes = minutes_spent(plan, work) + (time.monotonic() - started) / 60
    write_provenance(plan, folders, measures, minutes)
    report(f"{name} is in {folders.model} ({minutes:.1f} minutes)")
    return folders


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums are taken in one order, so that a seed decides every bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def round_to_half(model: Any) -> Any:
    """Round every weight to float16 and compute in float32: what is measured is what ships."""
    # buffers stay: a rotary table in half precision would be another model
    for weight in model.parameters():
        weight.data = weight.data.half().float()
    return model.eval().requires_grad_(False)


def save_model(model: Any, folder: Path) -> None:
    """A Hugging Face folder whose weights are stored in float16 and load as float32."""
    folder.mkdir(parents=True, exist_ok=True)
    halves = {name: weight.half() for name, weight in model.state_dict().items()}
    model.save_pretrained(str(folder), state_dict=halves)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["dtype"] = "float32"
    _write_json(config, folder / "config.json")
    save_tokenizer(folder, CONTEXT)


def save_dictionary(model: Any, plan: Recipe, layer: int, folder: Path, report: Report) -> Measures:
    """Fit, label and save the autoencoder of one layer; its quality on fresh text."""
    read = labelling.read_residuals
    rows = read(model, layer, labelling.dictionary_documents(_FIT_DOCUMENTS, _FIT_SEED)).rows
    size = plan.size
    fitted = dictionary.fit(rows, size.latents, _FIRING, size.fit_steps, plan.seed, report)
    fitted = fitted.keep(dictionary.alive(fitted, rows))
    fresh = read(model, layer, labelling.dictionary_documents(_CHECK_DOCUMENTS, _CHECK_SEED))
    fitted.save(folder, layer)
    labels = labelling.label_latents(model, layer, fitted, fresh)
    labelling.write_labels(labels, folder / "labels.csv")
    pure = [row for row in labels if row.purity >= 0.9]
    return labelling.quality(fitted, fresh) | {
        "latents": len(labels),
        "median_norm": float(fresh.rows.norm(dim=1).median()),
        "topics_with_pure_latent": len({row.topic for row in pure}),
        "pure_latents": len(pure),
        "pure_latents_that_steer_to_their_topic": sum(r.topic == r.steers_to for r in pure),
    }


def write_provenance(
    plan: Recipe, folders: Folders, measures: dict[int, Measures], minutes: float
) -> None:
    """`provenance.json` in the model's folder: how it was made, and the hash of what was made."""
    import transformers

    record = {
        "command": f"steerback organism train {plan.name} --seed {plan.seed}",
        "seed": plan.seed,
        "recipe": plan.key(len(plan.stages)),
        "stages": [asdict(s) for s in plan.stages],
        "steer_layer": plan.steer_layer,
        "minutes": round(minutes, 1),
        "autoencoders": {
            f"layer{layer}": {k: round(v, 4) for k, v in found.items()}
            for layer, found in measures.items()
        },
        "sha256": file_hashes(folders),
        "made_with": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "machine": platform.machine(),
        },
    }
    _write_json(record, folders.model / "provenance.json")


def file_hashes(folders: Folders) -> dict[str, str]:
    """SHA-256 of the weights, the tokenizer and everything of the autoencoders, by short path."""
    made = {p.name: p for p in folders.model.iterdir() if p.suffix in (".safetensors", ".jinja")}
    made["tokenizer.json"] = folders.model / "tokenizer.json"
    made |= {f"{p.parent.name}/{p.name}": p for p in folders.saes.glob("*/*")}
    return {
        name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in sorted(made.items())
    }


def _write_json(value: object, path: Path) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
