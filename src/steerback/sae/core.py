"""An SAE: what its encoder computes for chosen latents and what one of them adds to the stream."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from steerback.errors import UserError
from steerback.sae.readers import (
    GatedReader,
    JumpReluReader,
    LatentReader,
    LinearReader,
    NormalisedReader,
    Select,
    SelectReader,
    normalise,
)
from steerback.sae.source import check_indices, check_width
from steerback.sae.spec import Architecture, SaeSpec, check_shapes
from steerback.sae.weights import Weights

ROWS_KEPT = 8192


class Sae:
    """A sparse autoencoder. Holds no weights but those it was asked for.

    Adding c_k * output_scale(h) * directions([k]) to h equals: encode h, add c_k to latent k,
    decode, and add back the error of the unedited reconstruction.
    """

    def __init__(self, spec: SaeSpec, name: str) -> None:
        """Raises UserError when the shapes in the file are not those of `spec`."""
        check_shapes(spec)
        self.spec = spec
        self.name = name
        self.d_model = spec.d_model
        self.n = spec.n
        self.layer = spec.layer
        self._weights = Weights(spec)
        self._rows: dict[int, Tensor] = {}

    def __repr__(self) -> str:
        return f"Sae({self.name!r}, {self.spec.architecture}, {self.n} x {self.d_model})"

    def directions(self, indices: Sequence[int]) -> Tensor:
        """[len(indices), d_model] float32 on the CPU: decoder rows, any order, repeats allowed.

        Rows are in the SAE's own units: those that make one unit of f_k. With
        `rescale_by_decoder_norm` that is the row at unit norm.
        """
        check_indices("SAE", self.name, indices, self.n, "latent")
        if not indices:
            return torch.empty(0, self.d_model)
        missing = [index for index in dict.fromkeys(indices) if index not in self._rows]
        if not missing:
            return torch.stack([self._rows[index] for index in indices])
        if len(missing) > ROWS_KEPT:
            return self._weights.decoder_rows(indices)
        self._remember(missing, keep=set(indices))
        return torch.stack([self._rows[index] for index in indices])

    def reader(self, indices: Sequence[int] | None = None) -> LatentReader:
        """f_k(h) for these latents, any order, repeats allowed; None is all, in order.

        Raises UserError when the SAE was trained on something other than the residual stream.
        """
        if indices is not None:
            check_indices("SAE", self.name, indices, self.n, "latent")
        self._check_site()
        reader = _BUILD[self.spec.architecture](self._weights, indices)
        norm = self.spec.norm
        return NormalisedReader(reader.indices, reader, norm) if norm else reader

    def output_scale(self, h: Tensor) -> Tensor | None:
        """[rows, 1] float32 for residual-stream rows h [rows, d_model]; None is 1 always."""
        return normalise(h, self.spec.norm)[1] if self.spec.norm else None

    def check_width(self, d_model: int) -> None:
        """Raises UserError unless the model's residual stream has the SAE's width."""
        check_width("SAE", self, d_model)

    def decoder_norms(self) -> Tensor:
        """[n] float32: the norm of every row of `directions`. Reads the file through once."""
        if self.spec.rescale_by_decoder_norm:
            return torch.ones(self.n)
        return self._weights.norms / self.spec.input_scale

    def content_hash(self) -> str:
        """SHA-256 that names the weights and the settings beside them (see `hash_files`)."""
        return self._weights.hash

    def _remember(self, missing: Sequence[int], keep: set[int]) -> None:
        """Rows asked for are kept: a trial asks for the same few, a transposed file is slow."""
        fresh = self._weights.decoder_rows(missing)
        self._rows.update({index: row.clone() for index, row in zip(missing, fresh, strict=True)})
        for index in [index for index in self._rows if index not in keep]:
            if len(self._rows) <= ROWS_KEPT:
                break
            del self._rows[index]

    def _check_site(self) -> None:
        hook = self.spec.hook
        if hook and not _reads_stream(hook):
            raise UserError(
                f"SAE '{self.name}' was trained on {hook}, not on the residual stream, so its "
                "activations cannot be read there; use an SAE of hook_resid_post, or only add it"
            )


def _reads_stream(hook: str) -> bool:
    """Whether a site, as TransformerLens or Hugging Face names it, is the residual stream."""
    return re.search(r"(hook_resid_(pre|post)|[._]\d+)$", hook) is not None


def _linear(weights: Weights, indices: Sequence[int] | None) -> LatentReader:
    W, b = weights.encoder(indices)
    return LinearReader(_numbers(weights, indices), W, b)


def _jumprelu(weights: Weights, indices: Sequence[int] | None) -> LatentReader:
    W, b = weights.encoder(indices)
    threshold = weights.spec.threshold
    if isinstance(threshold, str):
        floor = weights.vector(threshold, indices)
    else:
        floor = torch.full_like(b, threshold)
    return JumpReluReader(_numbers(weights, indices), W, b, floor.clamp(min=0))


def _gated(weights: Weights, indices: Sequence[int] | None) -> LatentReader:
    W, b = weights.encoder(indices)
    scale = weights.vector("r_mag", indices).exp()
    shift = weights.vector("b_mag", indices) - weights.vector("b_gate", indices) * scale
    return GatedReader(_numbers(weights, indices), W, b, scale, shift)


def _select(weights: Weights, indices: Sequence[int] | None) -> LatentReader:
    W, b = weights.full_encoder
    keep = None if indices is None else torch.tensor(list(indices), dtype=torch.long)
    rule = cast("Select", weights.spec.architecture)
    return SelectReader(_numbers(weights, indices), W, b, weights.spec.k, rule, keep)


def _numbers(weights: Weights, indices: Sequence[int] | None) -> tuple[int, ...]:
    return tuple(range(weights.spec.n)) if indices is None else tuple(int(i) for i in indices)


_BUILD: dict[Architecture, Callable[[Weights, Sequence[int] | None], LatentReader]] = {
    "relu": _linear,
    "jumprelu": _jumprelu,
    "gated": _gated,
    "topk": _select,
    "abstopk": _select,
    "groupmax": _select,
}
