"""f_k(h) for chosen latents: what an SAE's encoder gives, computed for those latents alone.

A reader is a small bundle of tensors and one call. The decode loop calls it at every token, so
whatever can be folded is folded when it is built (`b = b_enc - b_dec @ W_enc`), and a ReLU or
JumpReLU reader costs one `addmm` and one or two elementwise operations.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

Select = Literal["topk", "abstopk", "groupmax"]
Norm = Literal["constant_norm_rescale", "layer_norm"]
R = TypeVar("R", bound="LatentReader")


@dataclass(frozen=True, eq=False)
class LatentReader(ABC):
    """Activations of `indices`, in that order, repeats allowed."""

    indices: tuple[int, ...]

    @abstractmethod
    def __call__(self, h: Tensor) -> Tensor:
        """f_k(h), [rows, k], of residual-stream rows h [rows, d_model] of any float dtype.

        Computed and returned in the reader's own dtype: float32 unless `to` changed it.
        """

    def to(self: R, device: torch.device | str, dtype: torch.dtype | None = None) -> R:
        """The same reader on a device; dtype applies to weights, never to indices."""
        moved = {f.name: _moved(getattr(self, f.name), device, dtype) for f in fields(self)}
        return replace(self, **moved)

    @staticmethod
    def concat(readers: Sequence[LatentReader]) -> LatentReader:
        """One reader with the outputs of all, side by side.

        Linear readers become one bank (one matrix product), TopK readers of one SAE share their
        encoder pass, and anything else is called in turn. Join first, move (`to`) afterwards:
        moved TopK readers have an encoder each.
        """
        if len(readers) == 1:
            return readers[0]
        indices = tuple(index for reader in readers for index in reader.indices)
        return (
            _bank(indices, readers)
            or _shared_encoder(indices, readers)
            or _same_norm(indices, readers)
            or JoinedReader(indices, tuple(readers))
        )


def _moved(value: Any, device: torch.device | str, dtype: torch.dtype | None) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, dtype if value.is_floating_point() else None)
    if isinstance(value, LatentReader):
        return value.to(device, dtype)
    if isinstance(value, tuple):
        return tuple(_moved(item, device, dtype) for item in value)
    return value


@dataclass(frozen=True, eq=False)
class LinearReader(LatentReader):
    """relu(h @ W + b): a ReLU SAE."""

    W: Tensor
    """[d_model, k], contiguous."""
    b: Tensor
    """[k], with everything that is subtracted from the input folded in."""

    @property
    def threshold(self) -> Tensor | None:
        """[k] pre-activations that must be exceeded, at least 0; None is 0 for all."""
        return None

    def __call__(self, h: Tensor) -> Tensor:
        return torch.addmm(self.b, h.to(self.W.dtype), self.W).relu_()


@dataclass(frozen=True, eq=False)
class JumpReluReader(LinearReader):
    """h @ W + b where that exceeds the threshold, else 0 (Rajamanoharan et al. 2024)."""

    floor: Tensor
    """[k], the threshold, at least 0: so that "above it" also means "positive"."""

    @property
    def threshold(self) -> Tensor | None:
        return self.floor

    def __call__(self, h: Tensor) -> Tensor:
        pre = torch.addmm(self.b, h.to(self.W.dtype), self.W)
        return pre.masked_fill_(pre <= self.floor, 0.0)


def _bank(indices: tuple[int, ...], readers: Sequence[LatentReader]) -> LatentReader | None:
    linear = [reader for reader in readers if isinstance(reader, LinearReader)]
    if len(linear) < len(readers):
        return None
    W = torch.cat([reader.W for reader in linear], dim=1)
    b = torch.cat([reader.b for reader in linear])
    floors = [reader.threshold for reader in linear]
    if all(floor is None for floor in floors):
        return LinearReader(indices, W, b)
    known = [
        torch.zeros_like(reader.b) if floor is None else floor
        for reader, floor in zip(linear, floors, strict=True)
    ]
    return JumpReluReader(indices, W, b, torch.cat(known))


@dataclass(frozen=True, eq=False)
class GatedReader(LatentReader):
    """[h @ W + b > 0] * relu((h @ W + b) * scale + shift): one product serves gate and magnitude.

    Rajamanoharan et al. 2024 tie the magnitude weights to the gate's: W_mag = W_gate * exp(r_mag).
    So scale = exp(r_mag) and shift = b_mag - b_gate * exp(r_mag); a folded input bias enters both
    paths through b.
    """

    W: Tensor
    b: Tensor
    scale: Tensor
    shift: Tensor

    def __call__(self, h: Tensor) -> Tensor:
        gate = torch.addmm(self.b, h.to(self.W.dtype), self.W)
        size = torch.addcmul(self.shift, gate, self.scale).relu_()
        return size.masked_fill_(gate <= 0, 0.0)


@dataclass(frozen=True, eq=False)
class SelectReader(LatentReader):
    """TopK and group-max SAEs: which latents fire depends on all of them.

    So the whole encoder is held ([d_model, n] float32: 1 GB for 65,536 latents of width 4,096) and
    every call multiplies by all of it; `indices` only chooses what is returned. Among equal
    pre-activations at the edge, `torch.topk` picks, as it does in sae-lens and in sparsify.
    """

    W: Tensor
    """[d_model, n]"""
    b: Tensor
    """[n]"""
    keep: int
    """Latents that may fire per row."""
    rule: Select
    columns: Tensor | None
    """[k] indices as a tensor; None returns every latent."""

    def __call__(self, h: Tensor) -> Tensor:
        acts = SELECT[self.rule](torch.addmm(self.b, h.to(self.W.dtype), self.W), self.keep)
        return acts if self.columns is None else acts.index_select(1, self.columns)


def _shared_encoder(
    indices: tuple[int, ...], readers: Sequence[LatentReader]
) -> LatentReader | None:
    first = readers[0]
    if not isinstance(first, SelectReader):
        return None
    if any(not isinstance(reader, SelectReader) or reader.W is not first.W for reader in readers):
        return None
    return replace(first, indices=indices, columns=torch.tensor(indices).to(first.b.device))


def _topk(pre: Tensor, k: int) -> Tensor:
    values, at = pre.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(pre).scatter_(-1, at, values.relu_())


def _abstopk(pre: Tensor, k: int) -> Tensor:
    """The k largest by magnitude, with their signs (AbsTopK; sparsify's `signed`)."""
    at = pre.abs().topk(k, dim=-1, sorted=False).indices
    return torch.zeros_like(pre).scatter_(-1, at, pre.gather(-1, at))


def _groupmax(pre: Tensor, k: int) -> Tensor:
    """The largest of each of k groups of neighbours."""
    groups = pre.relu_().view(len(pre), k, -1)
    values, at = groups.max(dim=-1, keepdim=True)
    return torch.zeros_like(groups).scatter_(-1, at, values).flatten(-2)


SELECT: dict[Select, Callable[[Tensor, int], Tensor]] = {
    "topk": _topk,
    "abstopk": _abstopk,
    "groupmax": _groupmax,
}


def normalise(h: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """(what the encoder sees [rows, d_model], [rows, 1] factor that takes its outputs back).

    As sae-lens defines them: constant_norm_rescale brings each row to norm sqrt(d_model);
    layer_norm centres it and divides by its standard deviation (n - 1 in the denominator, 1e-5
    added on the way in but not on the way out). A row of zeros stays zeros.
    """
    h = h.to(torch.float32)
    if norm == "constant_norm_rescale":
        scale = h.norm(dim=-1, keepdim=True) / h.shape[-1] ** 0.5
        return h / scale.clamp(min=torch.finfo(torch.float32).tiny), scale
    centred = h - h.mean(dim=-1, keepdim=True)
    scale = centred.norm(dim=-1, keepdim=True) / (h.shape[-1] - 1) ** 0.5
    return centred / (scale + 1e-5), scale


@dataclass(frozen=True, eq=False)
class NormalisedReader(LatentReader):
    """A reader of an SAE whose input is normalised row by row."""

    inner: LatentReader
    norm: Norm

    def __call__(self, h: Tensor) -> Tensor:
        return self.inner(normalise(h, self.norm)[0])


def _same_norm(indices: tuple[int, ...], readers: Sequence[LatentReader]) -> LatentReader | None:
    same = [reader for reader in readers if isinstance(reader, NormalisedReader)]
    if len(same) < len(readers) or len({reader.norm for reader in same}) > 1:
        return None
    inner = LatentReader.concat([reader.inner for reader in same])
    return NormalisedReader(indices, inner, same[0].norm)


@dataclass(frozen=True, eq=False)
class JoinedReader(LatentReader):
    """Several readers called in turn."""

    readers: tuple[LatentReader, ...]

    def __call__(self, h: Tensor) -> Tensor:
        return torch.cat([reader(h) for reader in self.readers], dim=1)
