"""From a recipe to the folders that ship: model, tokenizer, autoencoder, labels, provenance."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from steerback.organism import dictionary, labelling
from steerback.organism.recipes import Recipe, recipe
from steerback.organism.training import CONTEXT, Report, train_model
from steerback.organism.vocabulary import save_tokenizer

_FIRING = 8
_FIT_STEPS = 800
_FIT_DOCUMENTS, _CHECK_DOCUMENTS = 3000, 1000
_FIT_SEED, _CHECK_SEED = 77, 999


@dataclass(frozen=True)
class Folders:
    model: Path
    sae: Path

    @classmethod
    def under(cls, root: Path, name: str, layer: int) -> Folders:
        return cls(root / "models" / name, root / "saes" / name / f"layer{layer}")


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
    folders = Folders.under(out, name, plan.steer_layer)
    started = time.monotonic()
    with one_thread():
        model = round_to_half(train_model(plan, work or out / "work", report))
        save_model(model, folders.model)
        report("fitting the autoencoder")
        measures = save_dictionary(model, plan, plan.steer_layer, folders.sae, report)
    minutes = (time.monotonic() - started) / 60
    write_provenance(plan, folders, measures, minutes, model)
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
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    save_tokenizer(folder, CONTEXT)


def save_dictionary(
    model: Any, plan: Recipe, layer: int, folder: Path, report: Report
) -> dict[str, float]:
    """Fit, label and save the autoencoder of one layer; its quality on fresh text."""
    read = labelling.read_residuals
    rows = read(model, layer, labelling.dictionary_documents(_FIT_DOCUMENTS, _FIT_SEED)).rows
    fitted = dictionary.fit(rows, plan.size.latents, _FIRING, _FIT_STEPS, plan.seed, report)
    fitted = fitted.keep(dictionary.alive(fitted, rows))
    fresh = read(model, layer, labelling.dictionary_documents(_CHECK_DOCUMENTS, _CHECK_SEED))
    fitted.save(folder, layer)
    labels = labelling.label_latents(model, layer, fitted, fresh)
    labelling.write_labels(labels, folder / "labels.csv")
    pure = [row for row in labels if row.purity >= 0.9]
    return labelling.quality(fitted, fresh) | {
        "median_norm": float(fresh.rows.norm(dim=1).median()),
        "topics_with_pure_latent": len({row.topic for row in pure}),
        "pure_latents": len(pure),
        "pure_latents_that_steer_to_their_topic": sum(r.topic == r.steers_to for r in pure),
    }


def write_provenance(
    plan: Recipe, folders: Folders, measures: dict[str, float], minutes: float, model: Any
) -> None:
    import transformers

    made = [*sorted(folders.model.glob("*.safetensors")), *sorted(folders.sae.iterdir())]
    (folders.model / "provenance.json").write_text(
        json.dumps(
            {
                "command": f"steerback organism train {plan.name} --seed {plan.seed}",
                "seed": plan.seed,
                "recipe": plan.key(len(plan.stages)),
                "stages": [asdict(s) for s in plan.stages],
                "parameters": sum(p.numel() for p in model.parameters()),
                "minutes": round(minutes, 1),
                "steer_layer": plan.steer_layer,
                "autoencoder": {k: round(v, 4) for k, v in measures.items()},
                "sha256": {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in made},
                "made_with": {
                    "torch": torch.__version__,
                    "transformers": transformers.__version__,
                    "machine": platform.machine(),
                },
            },
            indent=2,
        )
        + "\n",
        "utf-8",
    )
