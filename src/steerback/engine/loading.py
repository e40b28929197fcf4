"""How a model is loaded: where its weights are put, in how many bits, and what it means if it fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from steerback.errors import UserError
from steerback.memory import Quantize

PACKAGE = {"int8": "torchao", "fp8": "torchao", "int4": "bitsandbytes"}
"""What makes which. All three quantise weights alone, so that a row knows nothing of its batch."""


def placement(
    quantize: Quantize, device_map: str | None, dtype: torch.dtype, device: str
) -> dict[str, Any]:
    """Keyword arguments of `from_pretrained`; empty where the model is loaded whole and moved.

    Raises UserError if a package that is needed is not installed.
    """
    if quantize == "none" and device_map is None:
        return {}
    if device_map is not None:
        _need("accelerate", f"model.device_map = {device_map!r}")
    out: dict[str, Any] = {"device_map": device_map or {"": device}}
    if quantize != "none":
        _need(PACKAGE[quantize], f"model.quantize = {quantize!r}")
        out["quantization_config"] = _quantisation(quantize, dtype)
    return out


def _need(package: str, what: str) -> None:
    if find_spec(package) is None:
        raise UserError(
            f"{what} needs the {package} package, which is not installed; "
            "pip install 'steerback[quantize]'"
        )


def _quantisation(quantize: Quantize, dtype: torch.dtype) -> Any:
    if quantize == "int4":
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig() if quantize == "int8" else Float8WeightOnlyConfig())


def attention(config: Any) -> dict[str, str]:
    """Some versions of transformers give Gemma 2 an attention that leaves its soft cap out."""
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    return {"attn_implementation": "eager"} if capped else {}


@contextmanager
def no_loading_bar() -> Iterator[None]:
    """Progress is ours to show: the library's own bar would write over it."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def dtype_of(name: str, device: str) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name == "auto":
        return torch.float32 if device == "cpu" else torch.bfloat16
    if name not in known:
        raise UserError(f"dtype is {name!r}; use auto, {', '.join(known)}")
    return known[name]


def why_not_loaded(path: str | Path, error: Exception) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if Path(path).exists():
        return f"model folder {path} cannot be read: {first}"
    name = str(path)
    if name.startswith((".", "~")) or Path(path).is_absolute() or name.count("/") > 1:
        return f"there is no model folder {path}; check the path"
    return (
        f"model {path!r} is neither a folder here nor readable from the hub: {first} "
        "(check the name, the network, and for gated models HF_TOKEN)"
    )
