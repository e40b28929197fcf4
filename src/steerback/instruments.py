"""The bench that protocols work at: a lab, seen through the few things they may ask of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steerback import chat
from steerback.config import PublishedConfig
from steerback.contrast import nearest
from steerback.engine.base import Pair
from steerback.errors import UserError
from steerback.lab import SOURCE, Lab
from steerback.latents import Relevance, relevant
from steerback.preparation import prompt_pair, relevant_to_vectors, strengths_at_half_length
from steerback.protocols.base import Direction
from steerback.protocols.bench import Floats, Pooling, Text
from steerback.records import Record, Records
from steerback.switches import Switch
from steerback.types import Generation, Trace, Trial

CHUNK = 128
"""Texts read at a time: besides the result, the readings of one chunk are held."""
ROWS = 4096
"""Decoder rows held while neighbours are looked for."""


class Instruments:
    """A `Bench` on one lab."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.source = SOURCE
        self.steer_layer = lab.config.model.steer_layer
        self.readout_layer = lab.config.readout_layer
        self.n_layers = lab.engine.n_layers
        self.labels = {k: label.text for k, label in lab.labels.items()}

    @property
    def records(self) -> Records:
        return Records(self._lab.store, self._lab.judge.name)

    def settings(self, protocol: str) -> Mapping[str, Any]:
        return self._lab.config.settings.get(protocol, {})

    def execute(self, trials: Sequence[Trial], what: str) -> list[Generation]:
        self._lab.execute(trials, what)
        wanted = {t.key for t in trials}
        found = {
            t.key: g
            for protocol in sorted({t.protocol for t in trials})
            for t, g in self._lab.store.trials(protocol=protocol)
            if t.key in wanted
        }
        return [found[t.key] for t in trials]

    def read(
        self,
        texts: Sequence[Text],
        *,
        layer: int,
        pool: Pooling = "max",
        latents: Sequence[int] | None = None,
    ) -> Floats:
        width = self._lab.engine.sources[SOURCE].n if latents is None else len(latents)
        out = np.empty((len(texts), width), np.float32)
        for start in range(0, len(texts), CHUNK):
            chunk = [_pair(t) for t in texts[start : start + CHUNK]]
            readings = self._lab.engine.read(
                chunk, source=SOURCE, layer=layer, latents=latents, pool=pool
            )
            for row, reading in enumerate(readings, start):
                out[row] = reading.values
        return out

    def traces(self, texts: Sequence[Text], *, layer: int, latents: Sequence[int]) -> list[Floats]:
        pairs = [_pair(t) for t in texts]
        readings = self._lab.engine.read(
            pairs, source=SOURCE, layer=layer, latents=latents, pool="none"
        )
        return [r.values for r in readings]

    def streams(self, texts: Sequence[Text], *, layer: int) -> list[Floats]:
        return [h.numpy() for h in self._lab.engine.streams([_pair(t) for t in texts], layer)]

    def recorded(self, records: Sequence[Record], latents: Sequence[int]) -> list[Floats]:
        wanted = {r.trial.key for r in records}
        protocols = {r.trial.protocol for r in records}
        found = {
            key: columns(trace, latents)
            for protocol in protocols
            for key, trace in self._lab.store.traces(protocol=protocol)
            if key in wanted
        }
        if lacking := wanted - found.keys():
            raise UserError(
                f"{self._lab.store.folder}: {len(lacking)} of {len(wanted)} trials were generated "
                "before anybody asked for their activations; read them teacher-forced (reading = "
                '"steered"), or use a new folder'
            )
        return [found[r.trial.key] for r in records]

    def nearest(self, latents: Sequence[int], count: int) -> list[list[int]]:
        source = self._lab.engine.sources[SOURCE]
        own = torch.nn.functional.normalize(source.directions(latents), dim=1)
        cosine = torch.empty(len(latents), source.n)
        for start in range(0, source.n, ROWS):
            block = range(start, min(start + ROWS, source.n))
            rows = torch.nn.functional.normalize(source.directions(block), dim=1)
            cosine[:, block.start : block.stop] = own @ rows.T
        cosine[torch.arange(len(latents)), torch.tensor(list(latents), dtype=torch.long)] = -2
        best: list[list[int]] = cosine.topk(min(count, source.n - 1), dim=1).indices.tolist()
        return best

    def latent_of(self, source: str, index: int) -> int:
        vectors = self._lab.vectors
        if source == SOURCE or vectors is None:
            return index
        return nearest(vectors, self._lab.engine, SOURCE, 1, [index])[0][0][0]

    def relevant(
        self, questions: Sequence[str], directions: Sequence[tuple[str, int]]
    ) -> NDArray[np.bool_]:
        config = self._lab.config
        latents = [k for _, k in directions]
        if self._lab.vectors is not None:
            return relevant_to_vectors(self._lab, questions, latents)
        if config.directions.indices or config.relevance == "none":
            return np.zeros((len(questions), len(latents)), np.bool_)
        return self._relevant(questions, latents, config.relevance)

    def active(self, questions: Sequence[str], latents: Sequence[int]) -> NDArray[np.bool_]:
        return self._relevant(questions, latents, "zero")

    def _relevant(
        self, questions: Sequence[str], latents: Sequence[int], rule: Relevance
    ) -> NDArray[np.bool_]:
        prompts = [prompt_pair(self._lab, q) for q in questions]
        activations = self.read(
            [Text(p.prompt_ids, p.response_ids) for p in prompts], layer=self.readout_layer
        )
        return relevant(activations, rule)[:, list(latents)]

    @property
    def published(self) -> PublishedConfig:
        return self._lab.config.published

    @property
    def in_force(self) -> tuple[Switch, ...]:
        return self._lab.config.in_force

    def check_variant(self, variant: Sequence[str]) -> None:
        self._lab.engine.check_variant(variant)

    def strengths_at_half_length(self, directions: Sequence[Direction]) -> dict[str, float]:
        return strengths_at_half_length(self._lab, directions)

    def encode(self, text: str) -> tuple[int, ...]:
        return self._lab.engine.encode(text)

    def characters(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        return chat.spans(self._lab.engine.tokenizer, ids)[1]


def columns(trace: Trace, latents: Sequence[int]) -> Floats:
    """[tokens, latents] of a stored trace; NaN for a latent that it does not have."""
    place = {k: n for n, k in enumerate(trace.latents)}
    out = np.full((len(trace.values), len(latents)), np.nan, np.float32)
    for n, k in enumerate(latents):
        if k in place:
            out[:, n] = trace.values[:, place[k]]
    return out


def _pair(text: Text) -> Pair:
    return Pair(text.prompt_ids, text.response_ids, text.interventions, text.skip)
