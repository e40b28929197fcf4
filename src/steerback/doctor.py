"""What this machine offers: packages, accelerator, tokens, disk; each with its remedy."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from importlib import metadata

from steerback import organism

EXTRAS = {
    "sae-lens": ("SAEs by release name", "pip install 'steerback[saelens]'"),
    "inspect-ai": ("judges behind an API", "pip install 'steerback[judge]'"),
    "openai": ("judges named openai/...", "pip install 'steerback[judge]'"),
    "anthropic": ("judges named anthropic/..., as in the presets", "pip install anthropic"),
    "peft": ("adapters of finetune", "pip install 'steerback[finetune]'"),
    "pyarrow": ("parquet export", "pip install 'steerback[parquet]'"),
}
TOKENS = {
    "HF_TOKEN": "gated models on the Hugging Face hub",
    "ANTHROPIC_API_KEY": "judges named anthropic/...",
    "OPENAI_API_KEY": "judges named openai/...",
}
ROOM = 10 * 2**30
"""Free disk below which a run of a large model may not fit."""


@dataclass(frozen=True)
class Check:
    what: str
    found: str
    ok: bool
    remedy: str = ""


def checks() -> list[Check]:
    found = [_required(p) for p in ("steerback", "torch", "transformers", "safetensors")]
    found += [_extra(package, *why) for package, why in EXTRAS.items()]
    found += [_accelerator(), _batches(), _disk()]
    found += [_token(name, use) for name, use in TOKENS.items()]
    names = organism.names()
    found.append(Check("organisms", ", ".join(names) or "none", bool(names)))
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _required(package: str) -> Check:
    version = _version(package)
    remedy = "" if version else "pip install steerback"
    return Check(package, version or "missing", version is not None, remedy)


def _extra(package: str, use: str, remedy: str) -> Check:
    version = _version(package)
    if version:
        return Check(package, version, True)
    return Check(package, f"not installed (needed for {use})", False, remedy)


def _accelerator() -> Check:
    import torch

    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        return Check("GPU", f"{torch.cuda.get_device_name(0)}, {memory:.0f} GiB", True)
    threads = torch.get_num_threads()
    return Check("GPU", f"none; CPU with {threads} threads (enough for the organisms)", True)


def _batches() -> Check:
    """Whether a trial's bits can be the same in any batch; measured on products of common widths."""
    import torch

    from steerback.engine import exact

    widths = [(128, 512), (512, 2048), (2048, 512)]
    products = [exact.linear(torch.randn(columns, width)) for width, columns in widths]
    block = exact.measure(products, torch.device("cpu"), torch.float32)
    threads = torch.get_num_threads()
    if block.exact:
        found = f"bit for bit in any batch, measured up to width 2048 with {threads} threads"
        return Check("float32 on the CPU", found, True)
    found = f"the same up to rounding in any batch, with {threads} threads at width 2048"
    return Check("float32 on the CPU", found, False, "OMP_NUM_THREADS=1 makes it bit for bit")


def _disk() -> Check:
    free = shutil.disk_usage(".").free
    remedy = "" if free > ROOM else "make room, or set `folder` to another disk"
    return Check("free disk here", f"{free / 2**30:.0f} GiB", free > ROOM, remedy)


def _token(name: str, use: str) -> Check:
    present = bool(os.environ.get(name))
    remedy = "" if present else f"export {name}=... for {use}"
    return Check(name, "set" if present else "not set", present, remedy)
