"""Llama Scope (He et al. 2024): `hyperparams.json` and `checkpoints/final.safetensors`.

Facts from OpenMOSS's Language-Model-SAEs and from sae-lens, which agree where decoder rows have
unit norm, as the published ones have. The input is scaled by c = sqrt(d_model) / (mean norm over
the training set) and the output by 1 / c; the one JumpReLU threshold is stated for activations in
the stream's own scale, so it becomes c * threshold for activations in the SAE's.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import Any

from steerback.errors import UserError
from steerback.sae.saelens import layer_of, read_json, whole_number
from steerback.sae.spec import Matrix, SaeSpec
from steerback.sae.tensors import SafetensorsFile

SETTINGS, WEIGHTS = "hyperparams.json", Path("checkpoints") / "final.safetensors"


def recognise(path: Path) -> Path | None:
    return path if (path / SETTINGS).is_file() and (path / WEIGHTS).is_file() else None


def read(folder: Path) -> SaeSpec:
    config = read_json(folder / SETTINGS)
    where = str(folder)
    _check_kind(config, where)
    d_model = whole_number(config, "d_model", where)
    scale = _scale(config, d_model, where)
    hook = str(config.get("hook_point_in", ""))
    return SaeSpec(
        file=SafetensorsFile(folder / WEIGHTS),
        where=where,
        d_model=d_model,
        n=whole_number(config, "d_sae", where),
        architecture="jumprelu",
        W_enc=Matrix("encoder.weight", transposed=True),
        W_dec=Matrix("decoder.weight", transposed=True),
        b_enc="encoder.bias",
        b_dec="decoder.bias" if config.get("apply_decoder_bias_to_pre_encoder") else None,
        threshold=scale
        * _positive(config.get("jump_relu_threshold"), "jump_relu_threshold", where),
        input_scale=scale,
        layer=layer_of(hook),
        hook=hook or None,
        files=(folder / SETTINGS,),
    )


def _check_kind(config: Mapping[str, Any], where: str) -> None:
    if config.get("act_fn") != "jumprelu":
        raise UserError(f"{where}: act_fn '{config.get('act_fn')}' is not read; known: jumprelu")
    if config.get("use_glu_encoder"):
        raise UserError(f"{where}: an encoder with gated linear units is not read")
    out = config.get("hook_point_out")
    if out is not None and out != config.get("hook_point_in"):
        raise UserError(
            f"{where}: a transcoder (from {config.get('hook_point_in')} to {out}), not an SAE"
        )


def _scale(config: Mapping[str, Any], d_model: int, where: str) -> float:
    if config.get("norm_activation", "dataset-wise") != "dataset-wise":
        raise UserError(
            f"{where}: norm_activation '{config['norm_activation']}' is not read; "
            "known: dataset-wise"
        )
    norms = config.get("dataset_average_activation_norm")
    norm = norms.get("in") if isinstance(norms, dict) else None
    return sqrt(d_model) / _positive(norm, "dataset_average_activation_norm.in", where)


def _positive(value: Any, key: str, where: str) -> float:
    if not isinstance(value, (int, float)) or not value > 0:
        raise UserError(f"{where}: '{key}' is {value!r} in the settings; expected a number above 0")
    return float(value)
