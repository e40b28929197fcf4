"""Live steering during training: which intervention a row is trained under."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from steerback.errors import UserError
from steerback.finetune.rows import Row
from steerback.finetune.settings import SteeringSettings
from steerback.labels import Label
from steerback.sae import Source
from steerback.types import Intervention, derive_seed
from steerback.vectors import VectorSet

RANDOM = "random"
"""Name of the random directions in interventions."""


@dataclass(frozen=True)
class Candidate:
    """A direction that training may push along."""

    index: int
    label: str


class Pushes:
    """Draws interventions from seed, epoch and row number alone: a resume draws the same."""

    def __init__(
        self,
        settings: SteeringSettings,
        source: str,
        candidates: Sequence[Candidate],
        layers: Sequence[int],
        seed: int,
        held_out: Sequence[Candidate] = (),
    ) -> None:
        self.settings, self.source, self.layers, self.seed = settings, source, tuple(layers), seed
        self.candidates, self.held_out = tuple(candidates), tuple(held_out)
        self._closed = {c.label.casefold() for c in held_out if c.label}
        self._by_label: dict[str, Sequence[Candidate]] = {}
        for c in candidates:
            if c.label:
                key = c.label.casefold()
                self._by_label[key] = (*self._by_label.get(key, ()), c)

    def draw(self, row: Row, number: int, epoch: int) -> tuple[Intervention, ...]:
        """The intervention that row `number` is trained under in this epoch; none for some."""
        own = self.settings
        rng = np.random.default_rng(derive_seed(self.seed, "push", epoch, number))
        if rng.random() >= (own.corrections if row.correction else own.ordinary):
            return ()
        if own.directions == "row":
            return () if row.push is None else (row.push,)
        subject = row.subject.casefold()
        if subject in self._closed:
            return ()
        # a direction toward what the text drifts to is how such a text comes about
        pool = self._by_label.get(subject, self.candidates)
        chosen = pool[int(rng.integers(len(pool)))]
        layer = self.layers[int(rng.integers(len(self.layers)))]
        value = float(rng.uniform(own.strength[0], own.strength[1]))
        return (
            Intervention("add", self.source, chosen.index, value, layer, own.unit, own.positions),
        )

    def used(self) -> dict[str, Any]:
        """What training may have pushed along, and what it was kept from, as JSON."""
        return {
            "source": self.source,
            "indices": [c.index for c in self.candidates],
            "held_out": [c.index for c in self.held_out],
            "labels": sorted({c.label for c in self.candidates if c.label}),
            "layers": list(self.layers),
        }


def kept(
    candidates: Sequence[Candidate], held_out: float, seed: int
) -> tuple[list[Candidate], list[Candidate]]:
    """(directions for training, those held out). All that share a label go to one side."""
    names = sorted({c.label.casefold() or f"#{c.index}" for c in candidates})
    rng = np.random.default_rng(derive_seed(seed, "held-out directions"))
    out = {names[i] for i in rng.permutation(len(names))[: round(held_out * len(names))]}
    sides: tuple[list[Candidate], list[Candidate]] = ([], [])
    for c in candidates:
        sides[(c.label.casefold() or f"#{c.index}") in out].append(c)
    if not sides[0]:
        raise UserError("no direction is left to train with; lower steering.held_out")
    return sides


def latents(sae: Source, labels: Mapping[int, Label], concreteness: float) -> list[Candidate]:
    """Latents whose label is rated concrete enough; all of them where there are no labels."""
    if not labels:
        return [Candidate(k, "") for k in range(sae.n)]
    return [
        Candidate(k, label.text)
        for k, label in sorted(labels.items())
        if (100.0 if label.concreteness is None else label.concreteness) >= concreteness
    ]


def random_vectors(count: int, d_model: int, seed: int) -> VectorSet:
    """Unit vectors of random direction."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "random directions") % 2**62)
    drawn = torch.randn(count, d_model, generator=generator)
    return VectorSet(RANDOM, torch.nn.functional.normalize(drawn, dim=1))


def of_vectors(vectors: VectorSet) -> list[Candidate]:
    labels = vectors.labels or ("",) * vectors.n
    return [Candidate(k, label) for k, label in enumerate(labels)]


def of_rows(
    rows: Sequence[Row], candidates: Sequence[Candidate]
) -> tuple[list[Candidate], list[Candidate], list[int]]:
    """(directions that rows were written under, candidates that share no label with them, layers).

    UserError if no row has one.
    """
    found = [r.push for r in rows if r.push is not None]
    if not found:
        raise UserError(
            "no row says under which push it was written (`steerback finetune data --self` writes "
            "such rows); steer along sae, vectors or random directions instead"
        )
    labels = {c.index: c.label for c in candidates}
    used = [Candidate(k, labels.get(k, "")) for k in sorted({p.index for p in found})]
    closed = {c.label.casefold() for c in used if c.label}
    indices = {c.index for c in used}
    others = [c for c in candidates if c.index not in indices and c.label.casefold() not in closed]
    return used, others, sorted({p.layer for p in found})
