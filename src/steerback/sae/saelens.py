"""SAELens folders: `cfg.json` and `sae_weights.safetensors`, versions 2 to 6.

Facts from the sae-lens source (6.54): defaults of configurations older than 6.0, the meaning of
`apply_b_dec_to_input` and of the input normalisations at inference. `expected_average_only_in`
does nothing at inference: training folds its factor into the weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steerback.errors import UserError
from steerback.sae.readers import Norm
from steerback.sae.spec import Architecture, Matrix, SaeSpec
from steerback.sae.tensors import SafetensorsFile, TensorFile, find, number, whole

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
ARCHITECTURES: dict[str, Architecture] = {
    "standard": "relu",
    "jumprelu": "jumprelu",
    "topk": "topk",
    "abstopk": "abstopk",
    "gated": "gated",
    "batchtopk": "jumprelu",
    "matryoshka_batchtopk": "jumprelu",
}
"""A BatchTopK SAE picks over a batch only while it trains; afterwards it is a JumpReLU at the
running threshold, which is how sae-lens saves it. A training checkpoint keeps that threshold as
the number `topk_threshold`."""
NORMS: dict[str, Norm | None] = {
    "none": None,
    "expected_average_only_in": None,
    "constant_norm_rescale": "constant_norm_rescale",
    "layer_norm": "layer_norm",
}


def recognise(path: Path) -> Path | None:
    folder = path.parent if path.name in (CONFIG, WEIGHTS) else path
    return folder if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file() else None


def read(folder: Path) -> SaeSpec:
    config = read_json(folder / CONFIG)
    file = SafetensorsFile(folder / WEIGHTS)
    return spec_from(config, file, str(folder), (folder / CONFIG,))


def spec_from(
    config: Mapping[str, Any], file: TensorFile, where: str, files: tuple[Path, ...] = ()
) -> SaeSpec:
    """The SAE that a sae-lens configuration describes. Raises UserError on what is not read."""
    architecture = _architecture(config, where)
    hook = _hook(config)
    _check_scaling(file, where)
    gated = architecture == "gated"
    return SaeSpec(
        file=file,
        where=where,
        d_model=whole_number(config, "d_in", where),
        n=whole_number(config, "d_sae", where),
        architecture=architecture,
        W_enc=Matrix("W_enc"),
        W_dec=Matrix("W_dec"),
        b_enc="b_gate" if gated else "b_enc",
        b_dec="b_dec" if config.get("apply_b_dec_to_input", True) else None,
        threshold=_threshold(config, file, where),
        k=_k(config, where) if architecture in ("topk", "abstopk") else 0,
        rescale_by_decoder_norm=bool(config.get("rescale_acts_by_decoder_norm", False)),
        norm=_norm(config, where),
        layer=layer_of(hook),
        hook=hook,
        files=files,
    )


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def whole_number(config: Mapping[str, Any], key: str, where: str) -> int:
    value = config.get(key)
    if not isinstance(value, (int, float)) or value < 1 or value != int(value):
        raise UserError(f"{where}: '{key}' is {value!r} in the settings; expected a whole number")
    return int(value)


def layer_of(hook: str | None) -> int | None:
    """The decoder layer whose output a site is: `blocks.8.hook_resid_pre` is that of layer 7."""
    match = re.search(r"(?:^|[._])(?:blocks|layers|h)[._](\d+)", hook or "")
    if match is None:
        return None
    layer = int(match[1]) - ("hook_resid_pre" in (hook or ""))
    return layer if layer >= 0 else None


def _architecture(config: Mapping[str, Any], where: str) -> Architecture:
    name = config.get("architecture", "standard")
    activation = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    if activation == "topk" and name == "standard":
        name = "topk"
    if name not in ARCHITECTURES:
        raise UserError(
            f"{where}: architecture '{name}' is not read; known: {_list(ARCHITECTURES)}"
        )
    if activation not in ("relu", "topk"):
        raise UserError(f"{where}: activation '{activation}' is not read; known: relu, topk")
    return ARCHITECTURES[name]


def _norm(config: Mapping[str, Any], where: str) -> Norm | None:
    name = config.get("normalize_activations") or "none"
    if name is True:
        name = "expected_average_only_in"
    if name not in NORMS:
        raise UserError(
            f"{where}: normalize_activations '{name}' is not read; known: {_list(NORMS)}"
        )
    hook = _hook(config) or ""
    default = "hook_z" if "hook_z" in hook else "none"
    reshape = config.get("reshape_activations", default)
    if reshape != "none":
        raise UserError(f"{where}: reshape_activations '{reshape}' is of attention heads, not read")
    return NORMS[name]


def _threshold(config: Mapping[str, Any], file: TensorFile, where: str) -> str | float:
    if "batchtopk" not in str(config.get("architecture")):
        return "threshold"
    with file.open() as parts:
        return number(find(parts, "topk_threshold", where))


def _k(config: Mapping[str, Any], where: str) -> int:
    if "k" in config:
        return whole_number(config, "k", where)
    return whole_number(config.get("activation_fn_kwargs") or {}, "k", where)


def _hook(config: Mapping[str, Any]) -> str | None:
    metadata = config.get("metadata") or {}
    for key in ("hook_name", "hook_point"):
        name = metadata.get(key) or config.get(key)
        if name:
            return str(name)
    return None


def _check_scaling(file: TensorFile, where: str) -> None:
    """Fine-tuned output scaling existed before sae-lens 6, which reads none but ones."""
    with file.open() as parts:
        for key in ("scaling_factor", "finetuning_scaling_factor"):
            if key in parts and not bool((whole(find(parts, key, where)) == 1).all()):
                raise UserError(
                    f"{where}: '{key}' rescales the decoder's output, which is not read"
                )


def _list(names: Mapping[str, object]) -> str:
    return ", ".join(sorted(names))
