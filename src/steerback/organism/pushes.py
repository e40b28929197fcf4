"""Live pushes: during training, some rows are steered toward another topic.

The direction toward a topic is the running mean of the residual stream under that topic's words,
less the mean over topics. It moves as the model learns, so the model meets its own directions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from steerback.organism.batches import Batch
from steerback.organism.corpus import topic_of_word, topics
from steerback.organism.vocabulary import words

_DECAY = 0.98
_WARM_UP = 10
"""Steps that only listen, until the means mean something."""


def word_topics() -> Tensor:
    """[vocabulary]: the topic of each token, -1 where it has none."""
    lookup = topic_of_word()
    return torch.tensor([lookup.get(w, -1) for w in words()])


class Pusher:
    """Adds pushes at the output of one layer and keeps the directions up to date."""

    def __init__(self, hidden: int, strength: tuple[float, float], seed: int) -> None:
        self.strength = strength
        self._rng = np.random.default_rng(seed)
        self._sums = torch.zeros(len(topics()), hidden)
        self._counts = torch.zeros(len(topics()))
        self._norm = 1.0
        self._steps = 0
        self._word_topics = word_topics()
        self._seen: Tensor | None = None
        self._push: Tensor | None = None

    @contextmanager
    def on(self, layer: nn.Module) -> Iterator[Pusher]:
        handle = layer.register_forward_hook(self._hook)
        try:
            yield self
        finally:
            handle.remove()

    def draw(self, batch: Batch) -> None:
        """Choose the pushes of the next forward pass, one for each row that is to have one.

        A push acts on the whole row, or on the answer only, with equal chance: both ways of
        steering exist.
        """
        rows, length = batch.tokens.shape
        self._steps += 1
        size = self._rng.uniform(*self.strength, rows) * self._norm * batch.pushed
        everywhere = self._rng.random(rows) < 0.5
        acts = np.arange(length) >= batch.response[:, None]
        acts[everywhere] = True
        vectors = self._directions()[batch.other] * torch.from_numpy(size).float()[:, None]
        warm = self._steps > _WARM_UP
        self._push = vectors[:, None] * torch.from_numpy(acts)[..., None] if warm else None

    def listen(self, tokens: Tensor) -> None:
        """Take the last forward pass, as it was before its pushes, into the running means."""
        assert self._seen is not None
        topic = self._word_topics[tokens]
        content = topic >= 0
        self._sums.mul_(_DECAY).index_add_(0, topic[content], self._seen[content])
        self._counts.mul_(_DECAY).add_(torch.bincount(topic[content], minlength=len(self._counts)))
        self._norm = float(self._seen[:, 1:].norm(dim=-1).mean())

    def _directions(self) -> Tensor:
        means = self._sums / self._counts.clamp(min=1e-6)[:, None]
        centred = means - means.mean(0)
        norms = centred.norm(dim=1, keepdim=True)
        return centred.div(norms.clamp(min=1e-6))

    def _hook(self, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        self._seen = hidden.detach()
        if self._push is None:
            return output
        hidden = hidden + self._push
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
