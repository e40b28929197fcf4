"""Which forward pass a model gets, and whether it does what is relied on: tried on a short probe."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from steerback.engine.base import Backend, Site
from steerback.engine.families import supports
from steerback.engine.fused import FusedDecoder
from steerback.engine.hooked import HookedModel, hooked
from steerback.errors import UserError


def choose(reference: HookedModel, model: nn.Module, backend: str) -> Backend:
    """The backend of that name; auto: the fused decoder where there is one and it agrees with the
    transformers forward, else that forward. Raises UserError for one that the model does not have."""
    if backend not in ("auto", "fused", "transformers"):
        raise UserError(f"backend is {backend!r}; use auto, fused or transformers")
    if backend == "transformers":
        return reference
    if not supports(model):
        if backend == "fused":
            raise UserError(
                f"{type(model).__name__} has no fused decoder; use backend auto or transformers"
            )
        return reference
    fused = FusedDecoder(model)
    gap = _disagreement(fused, reference)
    if gap < 0.05:
        return fused
    if backend == "fused":
        raise UserError(
            f"the fused decoder disagrees with transformers on {type(model).__name__} (relative "
            f"gap of the logits {gap:.2g}); use backend transformers"
        )
    return reference


def _probe(backend: Backend) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """Two short sequences of token ids spread over the vocabulary."""
    ids = torch.arange(2 * 7, device=backend.device).view(2, 7) * (backend.vocab // 15 or 1)
    return ids % backend.vocab, np.array([7, 5])


@torch.inference_mode()
def _disagreement(fused: Backend, reference: Backend) -> float:
    """Largest gap between the two logits on the probe, in units of the reference's spread."""
    ids, lengths = _probe(reference)
    out = []
    for backend in (fused, reference):
        cache = backend.allocate(2, 8)
        backend.prefill(cache, ids, lengths, np.arange(2), {})
        out.append(backend.step(cache, ids[:, 0], lengths + 1, {}).float())
    return float((out[0] - out[1]).abs().max() / out[1].std().clamp(min=1e-6))


@torch.inference_mode()
def check_layers(backend: HookedModel) -> None:
    """The output of each hooked layer must be the residual stream that transformers reports."""
    ids, _ = _probe(backend)
    seen: dict[int, torch.Tensor] = {}

    def keep(i: int) -> Site:
        def site(h: torch.Tensor) -> torch.Tensor:
            seen[i] = h
            return h

        return site

    sites = {i: keep(i) for i in range(backend.n_layers)}
    with hooked(backend.layers, sites):
        out = backend.model(input_ids=ids, output_hidden_states=True, use_cache=False)
    # the last hidden state is reported after the final norm, so it cannot be compared
    for i in range(backend.n_layers - 1):
        want = out.hidden_states[i + 1].reshape(-1, backend.d_model)
        if not torch.equal(seen[i], want):
            raise UserError(
                f"{type(backend.model).__name__}: the output of decoder layer {i} is not the residual "
                "stream that transformers reports; this architecture cannot be steered"
            )
