"""What a format's reader finds out about an SAE: shapes, names, conventions. No weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from steerback.errors import UserError
from steerback.sae.readers import Norm, Select
from steerback.sae.tensors import TensorFile, find

Architecture = Literal["relu", "jumprelu", "gated"] | Select


@dataclass(frozen=True)
class Matrix:
    """A weight matrix in a file, perhaps stored as its transpose."""

    key: str
    transposed: bool = False


@dataclass(frozen=True, kw_only=True)
class SaeSpec:
    """One SAE, as its files describe it."""

    file: TensorFile
    where: str
    """What to call it in an error."""
    d_model: int
    n: int
    architecture: Architecture
    W_enc: Matrix
    """[d_model, n] when not transposed."""
    W_dec: Matrix
    """[n, d_model] when not transposed."""
    b_enc: str | None = "b_enc"
    """None: no bias. The gate's bias for a gated SAE."""
    b_dec: str | None = None
    """Subtracted from the encoder's input; None where the encoder sees the input as it is."""
    threshold: str | float = "threshold"
    """JumpReLU: a tensor [n], or one number for all."""
    k: int = 0
    """Latents that may fire per row (topk, abstopk, groupmax)."""
    rescale_by_decoder_norm: bool = False
    """Activations are in units of unit decoder rows (sae-lens `rescale_acts_by_decoder_norm`)."""
    norm: Norm | None = None
    input_scale: float = 1.0
    """Constant that multiplies the input and divides the output; folded into the weights."""
    layer: int | None = None
    """0-based decoder layer whose output the SAE was trained on, where stated."""
    hook: str | None = None
    """The site as the publisher names it, where stated."""
    files: tuple[Path, ...] = ()
    """Files beside the tensors that say how to read them (for the hash)."""


def check_shapes(spec: SaeSpec) -> None:
    d, n = spec.d_model, spec.n
    wanted: dict[str | float | None, tuple[int, ...]] = {
        spec.W_enc.key: (n, d) if spec.W_enc.transposed else (d, n),
        spec.W_dec.key: (d, n) if spec.W_dec.transposed else (n, d),
        spec.b_enc: (n,),
        spec.b_dec: (d,),
    }
    if spec.architecture == "jumprelu":
        wanted[spec.threshold] = (n,)
    if spec.architecture == "gated":
        wanted |= {"r_mag": (n,), "b_mag": (n,)}
    with spec.file.open() as parts:
        for key, shape in wanted.items():
            if not isinstance(key, str):
                continue
            found = tuple(find(parts, key, spec.where).shape)
            if found != shape:
                raise UserError(
                    f"{spec.where}: '{key}' has shape {list(found)}, but {n} latents of width {d} "
                    f"make it {list(shape)}; the settings and the weights are not of one SAE"
                )
    _check_k(spec)


def _check_k(spec: SaeSpec) -> None:
    if spec.architecture in ("topk", "abstopk", "groupmax") and not 1 <= spec.k <= spec.n:
        raise UserError(f"{spec.where}: k is {spec.k}; it must be between 1 and {spec.n}")
    if spec.architecture == "groupmax" and spec.n % spec.k:
        raise UserError(f"{spec.where}: {spec.n} latents do not divide into k = {spec.k} groups")
