"""What the engine asks of a model, and what a protocol asks of an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steerback.engine.exact import Block
from steerback.types import Generation, Intervention, Trial

Site = Callable[[Tensor], Tensor]
"""Edits or observes the residual stream [rows, d_model] that leaves one decoder layer."""
Sites = Mapping[int, Site]

Pool = Literal["none", "max", "mean", "active"]
"""Over response tokens; active: the share of them where the latent is not zero."""


class Backend(Protocol):
    """A causal language model with key/value caches of numbered slots.

    Positions are absolute, prompts are padded on the right, and what a slot holds is overwritten by
    the next prompt that enters it. Whoever decodes has a cache of their own.
    """

    n_layers: int
    d_model: int
    vocab: int
    context: int
    """Longest sequence the model was made for, in tokens."""
    device: torch.device
    dtype: torch.dtype
    kind: str
    block: Block
    """Rows of a step come in multiples of `block.rows`."""

    def allocate(self, slots: int, capacity: int, opening: Tensor | None = None) -> Any:
        """A cache of `slots` sequences of up to `capacity` tokens, for the methods below.
        opening: ids [1, length] that all of them begin with, read now, once."""
        ...

    def prefill(
        self,
        cache: Any,
        ids: Tensor,
        lengths: NDArray[np.int64],
        slots: NDArray[np.int64],
        sites: Sites,
    ) -> Tensor:
        """Read prompts into slots. ids: [rows, longest], right-padded; lengths, slots: [rows].
        Returns the logits [rows, vocab] after each row's last token. Sites see [rows * longest, d].
        In a cache with an opening, `ids` and `lengths` are of what follows it."""
        ...

    def step(self, cache: Any, tokens: Tensor, lengths: NDArray[np.int64], sites: Sites) -> Tensor:
        """One token for each of the first len(tokens) slots. lengths: [rows], tokens in each slot's
        cache once the step has run, 0 where nobody sits. Returns logits [rows, vocab], those of
        empty slots without meaning. Sites see [rows, d]."""
        ...

    def move(self, cache: Any, source: int, target: int) -> None:
        """Move what a slot has cached to an empty one."""
        ...

    def forward(self, ids: Tensor, lengths: Tensor, sites: Sites) -> None:
        """Teacher-forced pass without a cache, up to the last site. Sites see [rows * longest, d]."""
        ...


@dataclass(frozen=True)
class Watch:
    """Latents whose activation is recorded at every generated token."""

    source: str
    layer: int
    latents: tuple[int, ...]
    own: tuple[int, ...] = ()
    """Recorded besides, each in the trials that add it alone."""

    @property
    def every(self) -> tuple[int, ...]:
        """All latents that are read while rows of a batch are decoded."""
        return (*self.latents, *(k for k in self.own if k not in self.latents))

    def columns(self, interventions: Iterable[Intervention]) -> list[int]:
        """Places in `every` of what is kept of a trial with these interventions."""
        added = {i.index for i in interventions if i.kind == "add" and i.source == self.source}
        return [n for n, k in enumerate(self.every) if n < len(self.latents) or k in added]


@dataclass(frozen=True)
class Pair:
    """A prompt and a response to be read teacher-forced, with the interventions in force."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    interventions: tuple[Intervention, ...] = ()
    skip: int = 0
    """Response tokens that are passed over before reading begins."""


@dataclass(frozen=True)
class Reading:
    """Activations over the response tokens of one pair, but for those skipped.

    values: [tokens, latents] for pool "none", else [latents].
    """

    values: NDArray[np.float32]


@dataclass
class Progress:
    """Where a call of `generate` stands."""

    done: int
    total: int
    tokens: int
    seconds: float

    @property
    def rate(self) -> float:
        """Generated tokens per second."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float:
        return self.seconds / self.done * (self.total - self.done) if self.done else float("inf")


class Engine(Protocol):
    """Generates steered text and reads activations."""

    name: str

    def generate(
        self,
        trials: Iterable[Trial],
        *,
        watch: Watch | None = None,
        progress: Callable[[Progress], None] | None = None,
        opening: str = "",
    ) -> Iterator[Generation]:
        """Generations in the order in which they finish. The text of a trial depends on it alone.
        opening: what the one message of each trial begins with, for an engine that can read it once."""
        ...

    def read(
        self,
        pairs: Sequence[Pair],
        *,
        source: str,
        layer: int,
        latents: Sequence[int] | None = None,
        pool: Pool = "max",
    ) -> list[Reading]:
        """Teacher-forced activations of chosen latents (None: all) over response tokens."""
        ...
