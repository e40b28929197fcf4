"""The parts of an SAE's weights, in the field's orientation, read from wherever they lie."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from steerback.sae.source import hash_files, hash_tensors
from steerback.sae.spec import SaeSpec
from steerback.sae.tensors import Part, blocks, columns, find, rows, whole

SMALLEST_NORM = 1e-8
"""sae-lens clamps decoder norms here before it divides by them."""


class Weights:
    """Reads parts on demand; `indices` chooses latents (None: all) in any order, with repeats."""

    def __init__(self, spec: SaeSpec) -> None:
        self.spec = spec

    def encoder(self, indices: Sequence[int] | None) -> tuple[Tensor, Tensor]:
        """W [d_model, k] contiguous and b [k] such that the pre-activation of x is x @ W + b.

        b_dec, the constant input scale and the decoder norms are folded in.
        """
        spec = self.spec
        with spec.file.open() as parts:
            W = _encoder(find(parts, spec.W_enc.key, spec.where), spec.W_enc.transposed, indices)
        b = self.vector(spec.b_enc, indices) if spec.b_enc else torch.zeros(W.shape[1])
        if spec.b_dec:
            b = b - _product(self.vector(spec.b_dec, None), W)
        if spec.input_scale != 1:
            W.mul_(spec.input_scale)
        if spec.rescale_by_decoder_norm:
            norms = self.norms if indices is None else _norms(self._stored_rows(indices))
            norms = norms.clamp(min=SMALLEST_NORM) / spec.input_scale
            return W.mul_(norms), b * norms
        return W, b

    @cached_property
    def full_encoder(self) -> tuple[Tensor, Tensor]:
        """`encoder(None)`, held so that the TopK readers of one SAE share it."""
        return self.encoder(None)

    def vector(self, key: str, indices: Sequence[int] | None) -> Tensor:
        """[k] float32: a tensor with one number per latent."""
        with self.spec.file.open() as parts:
            stored = whole(find(parts, key, self.spec.where))
        if indices is None:
            return stored
        return stored.index_select(0, torch.tensor(list(indices), dtype=torch.long))

    def decoder_rows(self, indices: Sequence[int]) -> Tensor:
        """[k, d_model]: what one unit of each latent adds to the (unnormalised) output."""
        out = self._stored_rows(indices)
        if self.spec.rescale_by_decoder_norm:
            return out / _norms(out).clamp(min=SMALLEST_NORM).unsqueeze(1)
        return out / self.spec.input_scale

    def _stored_rows(self, indices: Sequence[int]) -> Tensor:
        matrix = self.spec.W_dec
        with self.spec.file.open() as parts:
            part = find(parts, matrix.key, self.spec.where)
            if matrix.transposed:
                return columns(part, indices).T.contiguous()
            return rows(part, indices)

    @cached_property
    def norms(self) -> Tensor:
        """[n]: norms of the decoder rows as stored; the file passes by in blocks."""
        matrix = self.spec.W_dec
        with self.spec.file.open() as parts:
            part = find(parts, matrix.key, self.spec.where)
            if not matrix.transposed:
                return torch.cat([_norms(block) for _, block in blocks(part)])
            squares = torch.zeros(self.spec.n, dtype=torch.float64)
            for _, block in blocks(part):
                squares += block.double().square().sum(dim=0)
            return squares.sqrt().to(torch.float32)

    @cached_property
    def hash(self) -> str:
        paths = (*self.spec.file.paths, *self.spec.files)
        if paths:
            return hash_files(paths)
        with self.spec.file.open() as parts:
            return hash_tensors({key: whole(part) for key, part in parts.items()})


def _encoder(part: Part, transposed: bool, indices: Sequence[int] | None) -> Tensor:
    """[d_model, k] of an encoder stored as that, or as its transpose."""
    if not transposed:
        return whole(part) if indices is None else columns(part, indices)
    if indices is not None:
        return rows(part, indices).T.contiguous()
    out = torch.empty(part.shape[1], part.shape[0])
    for start, block in blocks(part):
        out[:, start : start + len(block)] = block.T
    return out


def _norms(block: Tensor) -> Tensor:
    """[rows] of a block [rows, d_model]."""
    norms: Tensor = torch.linalg.vector_norm(block, dim=1)
    return norms


def _product(x: Tensor, W: Tensor) -> Tensor:
    """x @ W summed in float64 (this bias is subtracted from a number of like size), by blocks."""
    out = torch.zeros(W.shape[1], dtype=torch.float64)
    step = max(1, (1 << 22) // max(W.shape[1], 1))
    for start in range(0, W.shape[0], step):
        out += x[start : start + step].double() @ W[start : start + step].double()
    return out.to(torch.float32)
