"""A rehearsal: a run with the preset's model made small, of random weights, and nothing downloaded.

Layers, their names, their number and the split of steered, SAE and readout layer are the model's own;
widths are tiny. What comes out has no meaning. It shows that the configuration works from end to end.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from steerback import organism
from steerback.architectures import architecture
from steerback.config import RunConfig
from steerback.dry.model import write_model
from steerback.dry.sae import write_sae
from steerback.errors import UserError

LATENTS = 2048
D_MODEL = 32
FEW = {"count": 4, "rounds": 3, "prompts_per_round": 2, "fresh": 4, "max_new_tokens": 24}
"""What is enough to go through every step."""
CELLS = 3
"""Questions per direction."""


def rehearsal(config: RunConfig) -> RunConfig:
    """Writes model, SAE and labels below the run's folder; the configuration that uses them.

    Raises UserError for a model whose architecture is not packaged and not in a folder here.
    """
    shape = _architecture(config)
    layers = int(shape["num_hidden_layers"])
    for name, layer in _layers(config).items():
        if layer >= layers:
            raise UserError(f"{name}: layer {layer} does not exist; the model has {layers} layers")
    folder = Path(f"{config.place}-dry")
    write_model(shape, folder / "model", D_MODEL)
    sae = write_sae(config.sae.spec, config.sae.layer, folder / "sae", D_MODEL, LATENTS)
    _write_labels(folder / "labels.csv")
    return _small(config, folder, sae)


def _architecture(config: RunConfig) -> Mapping[str, Any]:
    kind, _, name = config.model.source.partition(":")
    folder = organism.path(name) if kind == "organism" else Path(config.model.source)
    known = architecture(config.model.source)
    if known is not None:
        return known
    try:
        found: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        raise UserError(
            f"{config.model.source}: its architecture is not packaged, and there is no folder with "
            "its config.json; --dry-model works for presets and for folders"
        ) from None
    return found


def _layers(config: RunConfig) -> dict[str, int]:
    return {
        "model.steer_layer": config.model.steer_layer,
        "model.readout_layer": config.readout_layer,
        "sae.layer": config.sae.layer,
    }


def _write_labels(file: Path) -> None:
    """Every third latent has an abstract label, so that the filter has something to leave out."""
    rng = np.random.default_rng(0)
    with file.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(["index_in_sae", "label", "concreteness"])
        for latent in range(LATENTS):
            low, high = (0, 60) if latent % 3 == 0 else (70, 100)
            writer.writerow([latent, f"dry latent {latent}", int(rng.integers(low, high))])


def _small(config: RunConfig, folder: Path, sae: Path) -> RunConfig:
    """The same run with the small model, the judge without meaning, and few trials."""

    def few(table: Any, **also: Any) -> Any:
        own = {k: min(v, getattr(table, k)) for k, v in FEW.items() if hasattr(table, k)}
        return table.model_copy(update={**own, **also})

    settings = {
        name: {k: min(v, CELLS) if k.endswith("per_direction") else v for k, v in values.items()}
        for name, values in config.settings.items()
    }
    return config.model_copy(
        update={
            "name": f"{config.name}-dry",
            "folder": str(folder),
            "judge": "dry",
            "settings": settings,
            "model": config.model.model_copy(
                update={
                    "name": f"{config.model.name}-dry",
                    "path": str(folder / "model"),
                    "revision": None,
                    "dtype": "float32",
                    "device": "cpu",
                    "quantize": "none",
                    "device_map": None,
                    "slots": min(config.model.slots, 16),
                }
            ),
            "sae": config.sae.model_copy(update={"spec": str(sae), "latents": None}),
            "directions": few(
                config.directions,
                labels=str(folder / "labels.csv"),
                labels_sha256=None,
                rater="words",
                indices=[k for k in config.directions.indices if k < LATENTS],
            ),
            "sampling": few(config.sampling),
            "calibration": few(config.calibration),
        }
    )
