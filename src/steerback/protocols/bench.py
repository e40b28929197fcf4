"""What a protocol may ask of a run before it plans: trials made real, and texts read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal
from typing import Protocol as Interface

import numpy as np
from numpy.typing import NDArray

from steerback.config import PublishedConfig
from steerback.records import Record, Records
from steerback.switches import Switch
from steerback.types import Generation, Intervention, Trial

if TYPE_CHECKING:
    from steerback.protocols.base import Direction

Floats = NDArray[np.float32]
Pooling = Literal["max", "mean", "active"]
"""Over the tokens of a response: the largest activation, the mean, the share that is not zero."""


@dataclass(frozen=True)
class Text:
    """A response to be read after a prompt, with the interventions in force."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    interventions: tuple[Intervention, ...] = ()
    skip: int = 0
    """Response tokens that are passed over before reading begins."""

    def until(self, end: int) -> Text:
        """The text up to response token `end`."""
        return replace(self, response_ids=self.response_ids[:end])


class Bench(Interface):
    """The instruments of one run, as a protocol sees them."""

    @property
    def source(self) -> str:
        """Name of the run's SAE in interventions."""
        ...

    @property
    def steer_layer(self) -> int: ...

    @property
    def readout_layer(self) -> int: ...

    @property
    def n_layers(self) -> int: ...

    @property
    def labels(self) -> Mapping[int, str]:
        """What latents are said to stand for; those nobody labelled are left out."""
        ...

    @property
    def records(self) -> Records:
        """Judged trials of the run so far."""
        ...

    def settings(self, protocol: str) -> Mapping[str, Any]:
        """What the run's configuration says of a protocol; empty if nothing."""
        ...

    def execute(self, trials: Sequence[Trial], what: str) -> list[Generation]:
        """Generate and judge what is not stored yet; all generations, in order."""
        ...

    def read(
        self,
        texts: Sequence[Text],
        *,
        layer: int,
        pool: Pooling = "max",
        latents: Sequence[int] | None = None,
    ) -> Floats:
        """Teacher-forced activations [texts, latents] (None: all) on the stream that leaves `layer`,
        pooled over response tokens."""
        ...

    def traces(self, texts: Sequence[Text], *, layer: int, latents: Sequence[int]) -> list[Floats]:
        """Teacher-forced activations [tokens, latents] of each text."""
        ...

    def streams(self, texts: Sequence[Text], *, layer: int) -> list[Floats]:
        """Residual stream [tokens, d_model] that leaves `layer` over the response tokens of each text,
        its interventions in force."""
        ...

    def recorded(self, records: Sequence[Record], latents: Sequence[int]) -> list[Floats]:
        """Activations [tokens drawn, latents] at the readout layer as they were while each trial was
        generated; NaN for a latent that was not recorded there. UserError for a trial without any."""
        ...

    def nearest(self, latents: Sequence[int], count: int) -> list[list[int]]:
        """For each latent the `count` others whose directions have the largest cosine with its own."""
        ...

    def latent_of(self, source: str, index: int) -> int:
        """The latent of the run's SAE that a direction is, or whose own has the largest cosine with
        it."""
        ...

    def relevant(
        self, questions: Sequence[str], directions: Sequence[tuple[str, int]]
    ) -> NDArray[np.bool_]:
        """[questions, directions (source, index)]: which have to do with which, by the rule
        that the run chose them by."""
        ...

    def active(self, questions: Sequence[str], latents: Sequence[int]) -> NDArray[np.bool_]:
        """[questions, latents]: which fire at all on which prompts (the published code's rule)."""
        ...

    @property
    def published(self) -> PublishedConfig:
        """What the published code does otherwise with this model."""
        ...

    @property
    def in_force(self) -> tuple[Switch, ...]:
        """The ways of the published code that the run is made in."""
        ...

    def check_variant(self, variant: Sequence[str]) -> None:
        """Raises UserError for a `Trial.variant` that the model does not have."""
        ...

    def strengths_at_half_length(self, directions: Sequence[Direction]) -> dict[str, float]:
        """Strength by direction that a search over responses of half the length finds; those that
        cannot reach the target are left out."""
        ...

    def encode(self, text: str) -> tuple[int, ...]:
        """Tokens of a piece of a response."""
        ...

    def characters(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """The characters [start, end) of the response that each token brought; disjoint, in order."""
        ...
