"""Which latents to steer with: labels, concreteness, relevance, life, and the funnel they leave.

Pure selection over arrays; the lab reads the activations. Every latent that is left out is counted
under the rule that left it out.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steerback.errors import UserError
from steerback.types import derive_seed

Floats = NDArray[np.float32]
Relevance = Literal["top-100", "zero", "none"]
TOP = 100
CANDIDATES = 3
"""Random candidates per latent wanted, as published."""


@dataclass(frozen=True)
class Label:
    """What a latent is said to stand for."""

    text: str
    concreteness: float | None = None
    """0-100; None where nobody rated it."""


@dataclass(frozen=True)
class Chosen:
    """A latent that passed, and the questions that it has to do with."""

    index: int
    label: str
    skip: tuple[str, ...] = ()


@dataclass
class Funnel:
    """How many latents were left after each rule, in order."""

    stages: list[tuple[str, int]] = field(default_factory=list)

    def note(self, rule: str, left: int) -> None:
        self.stages.append((rule, left))

    def as_json(self) -> list[dict[str, Any]]:
        return [{"rule": rule, "left": left} for rule, left in self.stages]


def read_labels(path: str | Path) -> dict[int, Label]:
    """A CSV with columns index_in_sae and label, and perhaps concreteness (0-100).

    Raises UserError naming file and line.
    """
    place = Path(path)
    try:
        with place.open(encoding="utf-8-sig", newline="") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{place}: cannot be read as a CSV file of labels ({error})") from None
    if not rows or not {"index_in_sae", "label"} <= set(rows[0]):
        found = ", ".join(rows[0]) if rows else "no rows"
        raise UserError(f"{place}: needs the columns index_in_sae and label; it has {found}")
    return dict(_label(place, n, row) for n, row in enumerate(rows, start=2))


def _label(place: Path, line: int, row: Mapping[str, str]) -> tuple[int, Label]:
    try:
        rated = row.get("concreteness")
        return int(row["index_in_sae"]), Label(row["label"], float(rated) if rated else None)
    except ValueError as error:
        raise UserError(f"{place}, line {line}: {error}; index_in_sae is a whole number") from None


def relevant(activations: Floats, rule: Relevance) -> NDArray[np.bool_]:
    """Which latents have to do with which prompts. activations: [prompts, latents], max over tokens.

    top-100: among the prompt's 100 most active latents that fire at all (the paper's text); zero:
    active at all (the published code).
    """
    active: NDArray[np.bool_] = np.greater(activations, 0)
    if rule == "none":
        return np.zeros_like(active)
    if rule == "zero" or activations.shape[1] <= TOP:
        return active
    edge = np.partition(activations, -TOP, axis=1)[:, -TOP][:, None]
    top: NDArray[np.bool_] = active & (activations >= edge)
    return top


@dataclass(frozen=True)
class Rules:
    """The settings of a selection."""

    count: int
    concreteness_min: float
    relevance: Relevance
    scope: Literal["run", "pair"]
    seed: int


def select(
    rules: Rules,
    questions: Sequence[str],
    prompt_activations: Floats,
    answer_activations: Floats,
    labels: Mapping[int, Label],
) -> tuple[list[Chosen], Funnel]:
    """Latents to calibrate, in random order, and the funnel.

    prompt_activations: [questions, latents], max over each prompt's tokens; answer_activations:
    [answers, latents], max over unsteered answers. A latent is dead if it fires on none of these.
    Random candidates are drawn from the living whose labels are concrete enough, three times as many
    as wanted; relevance is judged among them, and the first `count` that pass are chosen.
    """
    n = prompt_activations.shape[1]
    funnel = Funnel()
    funnel.note("latents of the SAE", n)
    peak = np.vstack([prompt_activations, answer_activations]).max(axis=0)
    pool = np.flatnonzero(peak > 0).tolist()
    funnel.note("fire on some prompt or unsteered answer", len(pool))
    if labels and rules.concreteness_min > 0:
        rated = {k: label.concreteness for k, label in labels.items()}
        pool = [k for k in pool if (rated.get(k) or 0.0) >= rules.concreteness_min]
        funnel.note(f"label rated {rules.concreteness_min:g} or more for concreteness", len(pool))
    rng = np.random.default_rng(derive_seed(rules.seed, "latents"))
    drawn = [pool[i] for i in rng.permutation(len(pool))[: CANDIDATES * rules.count]]
    funnel.note("random candidates", len(drawn))
    has_to_do = relevant(prompt_activations, rules.relevance)
    chosen = []
    for k in drawn:
        skip = tuple(q for q, yes in zip(questions, has_to_do[:, k], strict=True) if yes)
        spare = len(questions) - len(skip)
        if (rules.scope == "run" and not skip) or (rules.scope == "pair" and spare):
            chosen.append(Chosen(k, labels[k].text if k in labels else "", skip))
    rule = "irrelevant to every prompt" if rules.scope == "run" else "irrelevant to some prompt"
    funnel.note(f"{rule} ({rules.relevance})", len(chosen))
    chosen = chosen[: rules.count]
    funnel.note("wanted", len(chosen))
    return chosen, funnel


def as_json(chosen: Sequence[Chosen]) -> list[dict[str, Any]]:
    return [asdict(c) for c in chosen]


def from_json(data: Sequence[Mapping[str, Any]]) -> list[Chosen]:
    return [Chosen(d["index"], d["label"], tuple(d["skip"])) for d in data]
