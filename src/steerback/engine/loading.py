"""Where a model's weights are put, and in how many bits: arguments for transformers' loader."""

from __future__ import annotations

from importlib.util import find_spec
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
