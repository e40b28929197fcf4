"""Teacher-forced readouts, streamed: no [tokens, all latents] tensor of a whole batch is ever held."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steerback import steer
from steerback.engine import exact
from steerback.engine.base import Backend, Pair, Pool, Reading
from steerback.engine.spans import Span, sequence_sites
from steerback.sae import LatentReader, Source

READ_TOKENS = 4096
"""Tokens of a forward pass, padding included."""

READ_CELLS = 2**23
"""Activations held at once while pooling (32 MiB of float32)."""


def batches(backend: Backend, pairs: Sequence[Pair]) -> Iterator[list[int]]:
    """Indices of pairs that are padded to one length, at most READ_TOKENS tokens (or one pair)."""
    length = [_padded(backend, p) for p in pairs]
    order = sorted(range(len(pairs)), key=lambda i: length[i])
    for n, same in groupby(order, key=lambda i: length[i]):
        alike = list(same)
        most = max(1, READ_TOKENS // n)
        yield from (alike[at : at + most] for at in range(0, len(alike), most))


def _padded(backend: Backend, pair: Pair) -> int:
    n = len(pair.prompt_ids) + len(pair.response_ids)
    return exact.padded(n, backend.block.rows, backend.context)


def residuals(
    backend: Backend, packer: steer.Packer, pairs: Sequence[Pair], layer: int
) -> list[Tensor]:
    """Residual stream that leaves `layer` over what is read of each pair: [tokens, d_model]."""
    ids, lengths = _pad(pairs, max(_padded(backend, p) for p in pairs))
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
    return [h[r, len(p.prompt_ids) + p.skip : ends[r]] for r, p in enumerate(pairs)]


def _pad(pairs: Sequence[Pair], length: int) -> tuple[Tensor, Tensor]:
    lengths = [len(p.prompt_ids) + len(p.response_ids) for p in pairs]
    ids = np.zeros((len(pairs), length), np.int64)
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
    """One reading per pair, in order; see `Engine.read`.

    Pooled readings are rows of one array: many arrays of their size, made while others come and go,
    would leave holes in memory several times as large as themselves.
    """
    out: list[Reading | None] = [None] * len(pairs)
    n = source.n if latents is None else len(latents)
    rows = None if pool == "none" else np.empty((len(pairs), n), np.float32)
    asked = None if latents is None else steer.widened(latents)
    reader = source.reader(asked).to(backend.device)
    for batch in batches(backend, pairs):
        streams = residuals(backend, packer, [pairs[i] for i in batch], layer)
        for i, h in zip(batch, streams, strict=True):
            values = pooled(reader, h, pool, backend.block.rows)[..., :n]
            if rows is not None:
                rows[i] = values
                values = rows[i]
            out[i] = Reading(values)
    return [reading for reading in out if reading is not None]


def pooled(reader: LatentReader, h: Tensor, pool: Pool, block: int) -> NDArray[np.float32]:
    """h: [tokens, d_model] -> [latents], or [tokens, latents] for pool "none".

    Tokens go through the encoder a few at a time, so that READ_CELLS activations are held at most,
    but a multiple of `block` at once.
    """
    n = len(reader.indices)
    pieces = torch.split(h, max(1, READ_CELLS // n // block) * block)

    def read_rows(piece: Tensor) -> Tensor:
        return reader(exact.filled(piece, block))[: len(piece)].float()

    if pool == "none":
        return torch.cat([read_rows(piece) for piece in pieces]).cpu().numpy()
    if len(h) == 0:
        return np.full(n, np.nan, np.float32)
    total = torch.full((n,), -torch.inf if pool == "max" else 0.0, device=h.device)
    for piece in pieces:
        acts = read_rows(piece)
        if pool == "active":
            acts = (acts != 0).float()
        total = torch.maximum(total, acts.amax(0)) if pool == "max" else total + acts.sum(0)
    return (total if pool == "max" else total / len(h)).cpu().numpy()
