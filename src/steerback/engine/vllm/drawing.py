"""Our own draw inside vLLM: the token is chosen here, and every other one is made impossible.

vLLM's sampler draws from a generator of its own. For the same trial to give the same text on every
engine, the draw is that of `engine.sampling`: one uniform a token from the trial's seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steerback.engine.sampling import RowSettings, draw, uniforms
from steerback.engine.vllm.wire import Request
from steerback.types import Sampling

AHEAD = 256
"""Uniforms are made so many at a time."""


@dataclass
class Row:
    """A request of the batch."""

    key: str
    sampling: Sampling
    seed: int
    prompt: Sequence[int]
    output: Sequence[int]
    """Tokens drawn so far: the caller's list, which grows."""
    _uniforms: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))

    @classmethod
    def of(cls, request: Request, prompt: Sequence[int], output: Sequence[int]) -> Row | None:
        """None where vLLM is left to draw."""
        if request.draw is None:
            return None
        return cls(request.key, request.draw, request.seed, prompt, output)

    @property
    def uniform(self) -> float:
        """Of the next token."""
        n = len(self.output)
        if n >= len(self._uniforms):
            self._uniforms = uniforms(self.seed, n + AHEAD)
        return float(self._uniforms[n])


class Draws:
    """The rows of a batch by their places in it, and what is kept of them from step to step."""

    def __init__(self, rows: dict[int, Row] | None = None) -> None:
        self.rows = rows or {}
        """Call `changed` after writing to it."""
        self._places: list[int] = []
        self._batch = -1

    def changed(self) -> None:
        self._batch = -1

    def force(self, logits: Tensor) -> list[str]:
        """Leave one token to our rows of logits [batch, vocab], in place.

        Returns the keys of rows whose logits are no numbers: what they are given means nothing.
        """
        if self._batch != len(logits):
            self._gather(logits)
        if not self._places:
            return []
        vocab, device = logits.shape[-1], logits.device
        token = draw(
            logits if self._whole else logits[self._index],
            torch.from_numpy(self._history()).to(device),
            self._settings,
            torch.tensor([r.uniform for r in self._mine], dtype=torch.float64, device=device),
            filters=self._filters,
            greedy=self._greedy,
        )
        host = token.tolist()
        broken = [row.key for row, t in zip(self._mine, host, strict=True) if t >= vocab]
        kept = token.clamp(max=vocab - 1)
        if self._whole:
            logits.fill_(-torch.inf)
        else:
            logits[self._index] = -torch.inf
        logits[self._index, kept] = 0.0
        return broken

    def _gather(self, logits: Tensor) -> None:
        """What only changes when requests come, go or move."""
        self._batch, vocab = logits.shape
        self._places = sorted(place for place in self.rows if place < self._batch)
        self._mine = [self.rows[place] for place in self._places]
        self._whole = len(self._places) == self._batch
        self._index = torch.tensor(self._places, dtype=torch.long, device=logits.device)
        sampling = [row.sampling for row in self._mine]
        self._settings = RowSettings.pack(sampling, vocab, logits.device)
        self._filters = any(0 < s.top_k < vocab or s.top_p < 1 for s in sampling)
        self._greedy = any(s.temperature == 0 for s in sampling)
        self._filled = [0] * len(self._mine)
        self._seen = np.zeros((len(self._mine), 0), np.int64)

    def _history(self) -> NDArray[np.int64]:
        """[rows, longest]: prompt and output of each, filled up with its first token."""
        lengths = [len(r.prompt) + len(r.output) for r in self._mine]
        longest = max(lengths)
        if longest > self._seen.shape[1]:
            self._seen = np.empty((len(self._mine), longest + AHEAD), np.int64)
            self._filled = [0] * len(self._mine)
        for n, (row, length) in enumerate(zip(self._mine, lengths, strict=True)):
            if not self._filled[n]:
                ids = [*row.prompt, *row.output]
                self._seen[n] = ids[0]
                self._seen[n, :length] = ids
            else:
                new = row.output[self._filled[n] - len(row.prompt) :]
                self._seen[n, self._filled[n] : length] = new
            self._filled[n] = length
        return self._seen[:, :longest]
