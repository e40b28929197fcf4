"""Our own draw inside vLLM: the token is chosen here, and every other one is made impossible.

vLLM's sampler draws from a generator of its own. For the same trial to give the same text on every
engine, the draw is that of `engine.sampling`: one uniform a token from the trial's seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
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

    def seen(self, length: int) -> list[int]:
        """Prompt and output, filled with the first token."""
        ids = [*self.prompt, *self.output]
        return ids + ids[:1] * (length - len(ids))


def force(logits: Tensor, rows: dict[int, Row]) -> list[str]:
    """Leave one token to the rows that are given by place in logits [batch, vocab], in place.

    Returns the keys of rows whose logits are no numbers: what they are given means nothing."""
    here = sorted(place for place in rows if place < len(logits))
    if not here:
        return []
    mine = [rows[place] for place in here]
    device, vocab = logits.device, logits.shape[-1]
    index = torch.tensor(here, device=device)
    longest = max(len(r.prompt) + len(r.output) for r in mine)
    settings = [r.sampling for r in mine]
    token = draw(
        logits[index],
        torch.tensor([r.seen(longest) for r in mine], device=device),
        RowSettings.pack(settings, vocab, device),
        torch.tensor([r.uniform for r in mine], dtype=torch.float64, device=device),
        filters=any(0 < s.top_k < vocab or s.top_p < 1 for s in settings),
        greedy=any(s.temperature == 0 for s in settings),
    )
    broken = [row.key for row, t in zip(mine, token.tolist(), strict=True) if t >= vocab]
    forced = torch.full((len(here), vocab), -torch.inf, dtype=logits.dtype, device=device)
    forced.scatter_(1, token.clamp(max=vocab - 1)[:, None], 0.0)
    logits[index] = forced
    return broken
