"""A small SAE of random weights in the file format that a spec names."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

Floats = NDArray[np.float32]
THRESHOLDS = (1.0, 300.0)
"""Pre-activations above which latents fire, spread evenly on a log scale: of any model's latents
some fire everywhere, some rarely, some never."""


def write_sae(spec: str, layer: int, folder: Path, d_model: int, latents: int) -> Path:
    """Where it now lies: `params.npz` (Gemma Scope), a `.pt` or `.pth` (Goodfire), or for any other
    spec a SAELens folder."""
    weights = _weights(d_model, latents)
    name = PurePosixPath(spec)
    if name.suffix in (".pt", ".pth"):
        return _goodfire(folder / name.name, weights)
    if name.suffix == ".npz":
        return _gemma_scope(folder / f"layer_{layer}" / name.name, weights)
    return _saelens(folder / f"layer_{layer}", weights, layer)


def _weights(d_model: int, latents: int) -> dict[str, Floats]:
    """In the field's orientation; encoder columns and decoder rows have norm 1."""
    rng = np.random.default_rng(0)
    W_enc = rng.standard_normal((d_model, latents)).astype(np.float32)
    W_dec = rng.standard_normal((latents, d_model)).astype(np.float32)
    return {
        "W_enc": W_enc / np.linalg.norm(W_enc, axis=0),
        "b_enc": np.zeros(latents, np.float32),
        "W_dec": W_dec / np.linalg.norm(W_dec, axis=1, keepdims=True),
        "b_dec": np.zeros(d_model, np.float32),
        "threshold": np.geomspace(*THRESHOLDS, latents, dtype=np.float32),
    }


def _goodfire(file: Path, weights: dict[str, Floats]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    parts = {
        "encoder_linear.weight": weights["W_enc"].T,
        "encoder_linear.bias": weights["b_enc"] - weights["threshold"],
        "decoder_linear.weight": weights["W_dec"].T,
        "decoder_linear.bias": weights["b_dec"],
    }
    torch.save({k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in parts.items()}, file)
    return file


def _gemma_scope(file: Path, weights: dict[str, Floats]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, allow_pickle=False, **weights)
    return file


def _saelens(folder: Path, weights: dict[str, Floats], layer: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "sae_weights.safetensors")
    d_model, latents = weights["W_enc"].shape
    config = {
        "architecture": "jumprelu",
        "d_in": d_model,
        "d_sae": latents,
        "dtype": "float32",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "metadata": {"hook_name": f"blocks.{layer}.hook_resid_post"},
    }
    (folder / "cfg.json").write_text(json.dumps(config), "utf-8")
    return folder
