"""Teacher-forced readouts, streamed: no [tokens, all latents] tensor of a whole batch is ever held."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steerback import steer
from steerback.engine.base import Backend, Pair, Pool, Reading
from steerback.engine.spans import Span, sequence_sites
from steerback.sae import LatentReader, Source

READ_TOKENS = 4096
"""Tokens of a forward pass, padding included."""

READ_CELLS = 2**23
"""Activations held at once while pooling (32 MiB of float32)."""


def batches(pairs: Sequence[Pair]) -> Iterator[list[int]]:
    """Indices of pairs of similar length whose padded size fits READ_TOKENS (at least one pair)."""
    length = [len(p.prompt_ids) + len(p.response_ids) for p in pairs]
    batch: list[int] = []
    for i in sorted(range(len(pairs)), key=lambda i: length[i]):
        if batch and length[i] * (len(batch) + 1) > READ_TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def residuals(
    backend: Backend, packer: steer.Packer, pairs: Sequence[Pair], layer: int
) -> list[Tensor]:
    """Residual stream that leaves `layer` over each pair's response tokens: [tokens, d_model]."""
    ids, lengths = _pad(pairs)
    held: list[Tensor] = []

    def keep(h: Tensor) -> Tensor:
        held.append(h)
        return h

    ends = lengths.tolist()
    spans = [
        Span(p.interventions, len(p.prompt_ids), end) for p, end in zip(pairs, ends, strict=True)
    ]
    sites = sequence_sites(packer, spans, ids.shape[1])
    before = sites.get(layer)
    sites[layer] = keep if before is None else (lambda h: keep(before(h)))
    with torch.inference_mode():
        backend.forward(ids.to(backend.device), lengths.to(backend.device), sites)
    h = held[0].view(*ids.shape, -1)
    return [h[r, len(p.prompt_ids) : ends[r]] for r, p in enumerate(pairs)]


def _pad(pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    lengths = [len(p.prompt_ids) + len(p.response_ids) for p in pairs]
    ids = np.zeros((len(pairs), max(lengths)), np.int64)
    for row, p in zip(ids, pairs, strict=True):
        row[: len(p.prompt_ids) + len(p.response_ids)] = (*p.prompt_ids, *p.response_ids)
    return torch.from_numpy(ids), torch.tensor(lengths)


def read(
    backend: Backend,
    packer: steer.Packer,
    pairs: Sequence[Pair],
    *,
    source: Source,
    layer: int,
    latents: Sequence[int] | None,
    pool: Pool,
) -> list[Reading]:
    """One reading per pair, in order; see `Engine.read`."""
    out: list[Reading | None] = [None] * len(pairs)
    reader = source.reader(latents).to(backend.device)
    for batch in batches(pairs):
        streams = residuals(backend, packer, [pairs[i] for i in batch], layer)
        for i, h in zip(batch, streams, strict=True):
            out[i] = Reading(_pooled(reader, h, pool))
    return [reading for reading in out if reading is not None]


def _pooled(reader: LatentReader, h: Tensor, pool: Pool) -> NDArray[np.float32]:
    """h: [tokens, d_model] -> [latents], or [tokens, latents] for pool "none".

    Tokens go through the encoder a few at a time, so that READ_CELLS activations are held at most.
    """
    n = len(reader.indices)
    pieces = torch.split(h, max(1, READ_CELLS // n))
    if pool == "none":
        return torch.cat([reader(piece).float() for piece in pieces]).cpu().numpy()
    if len(h) == 0:
        return np.full(n, np.nan, np.float32)
    total = torch.full((n,), -torch.inf if pool == "max" else 0.0, device=h.device)
    for piece in pieces:
        acts = reader(piece).float()
        if pool == "active":
            acts = (acts != 0).float()
        total = torch.maximum(total, acts.amax(0)) if pool == "max" else total + acts.sum(0)
    return (total if pool == "max" else total / len(h)).cpu().numpy()
