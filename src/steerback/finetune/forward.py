"""The differentiable forward pass under live steering, and the loss.

The same `steer.apply` at the same layer outputs as in `engine.hooked`, with gradients to what is
below and above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerback import steer
from steerback.engine.base import Site
from steerback.engine.hooked import decoder_layers, hooked
from steerback.engine.spans import Span, sequence_sites
from steerback.finetune.encoding import Example
from steerback.types import Intervention


@dataclass(frozen=True)
class Piece:
    """Rows of one forward pass, padded on the right."""

    ids: Tensor
    """[rows, length]"""
    weights: Tensor
    """[rows, length]: loss weights."""
    spans: tuple[Span, ...]

    @property
    def weight(self) -> float:
        """Sum of the loss weights."""
        return float(self.weights.sum())

    @property
    def tokens(self) -> int:
        return sum(s.end for s in self.spans)


def piece(
    examples: Sequence[Example], interventions: Sequence[tuple[Intervention, ...]], pad: int
) -> Piece:
    length = max(len(e.ids) for e in examples)
    ids = np.full((len(examples), length), pad, np.int64)
    weights = np.zeros((len(examples), length), np.float32)
    for row, e in enumerate(examples):
        ids[row, : len(e.ids)] = e.ids
        weights[row, : len(e.ids)] = e.weights
    spans = [Span(i, e.first, len(e.ids)) for e, i in zip(examples, interventions, strict=True)]
    return Piece(torch.from_numpy(ids), torch.from_numpy(weights), tuple(spans))


class Forward:
    """A model, plain or with adapters, as training runs it."""

    def __init__(
        self,
        model: Any,
        packer: steer.Packer | None = None,
        layers: Sequence[int] = (),
        follow: bool = False,
    ) -> None:
        """layers: those whose residual norm is noted in each pass. follow: what is added there is in
        units of that norm instead of the packer's, with the norm's gradient."""
        self.model, self.packer, self.noted = model, packer, tuple(layers)
        self.follow = follow
        self.norms: dict[int, float] = {}
        """Median residual norm that left each noted layer in the last pass, before its edit."""
        self.layers = decoder_layers(model.get_base_model() if _adapted(model) else model)
        self.device = next(model.parameters()).device

    def loss(self, part: Piece) -> Tensor:
        """Sum over tokens of weight times cross-entropy."""
        return self.losses(part).sum()

    def losses(self, part: Piece) -> Tensor:
        """[rows, length - 1]: weight times cross-entropy of each token but the first; 0 if masked."""
        logits = self.logits(part)[:, :-1]
        weights = part.weights.to(self.device)[:, 1:]
        counted = weights > 0
        targets = part.ids.to(self.device)[:, 1:][counted]
        lost = torch.nn.functional.cross_entropy(logits[counted].float(), targets, reduction="none")
        return torch.zeros_like(weights).masked_scatter(counted, lost * weights[counted])

    def logits(self, part: Piece) -> Tensor:
        """[rows, length, vocabulary]. Padding stands on the right, where no token attends to it."""
        sites: dict[int, Site] = {}
        if self.packer is not None:
            sites = sequence_sites(self.packer, part.spans, part.ids.shape[1])
        sites |= {layer: self._noting(layer, sites.get(layer), part) for layer in self.noted}
        with hooked(self.layers, sites, self.device):
            out = self.model(input_ids=part.ids.to(self.device), use_cache=False)
        logits: Tensor = out.logits
        return logits

    def _noting(self, layer: int, site: Site | None, part: Piece) -> Site:
        """The site, with the norms of what arrives at it noted; a row's first token is an outlier."""
        places = torch.arange(part.ids.shape[1])
        ends = torch.tensor([s.end for s in part.spans])
        real = ((places > 0) & (places < ends[:, None])).reshape(-1)

        def noting(h: Tensor) -> Tensor:
            norms = h.float().norm(dim=-1)[real.to(h.device)]
            median = norms.detach().median()
            self.norms[layer] = float(median)
            if site is None:
                return h
            if not self.follow or self.packer is None:
                return site(h)
            # the median's value with the gradient of the mean: a median's is that of one token
            now = median * norms.mean() / norms.detach().mean()
            scale: Tensor = (now / self.packer.norms[layer]).to(h.dtype)
            return h + scale * (site(h) - h)

        return noting


def _adapted(model: Any) -> bool:
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")
