"""Which latents to steer with: concreteness, relevance, life, and the funnel they leave.

Pure selection over arrays; the lab reads the activations. Every latent that is left out is counted
under the rule that left it out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steerback.labels import Label
from steerback.types import derive_seed

Floats = NDArray[np.float32]
Relevance = Literal["top-100", "zero", "none"]
Scope = Literal["run", "pair"]
TOP = 100
FEWEST = 2
"""Questions of a direction: its strength is verified on others than it is searched on."""
CANDIDATES = 3
"""Random candidates per latent wanted and draw, as published."""


@dataclass(frozen=True)
class Chosen:
    """A latent that passed, and the questions that it has to do with."""

    index: int
    label: str
    skip: tuple[str, ...] = ()
    source: str = "sae"
    """Name of the SAE or vector set in interventions."""


@dataclass
class Funnel:
    """How many latents were left after each rule, in order."""

    stages: list[tuple[str, int]] = field(default_factory=list)

    def note(self, rule: str, left: int) -> None:
        self.stages.append((rule, left))

    def as_json(self) -> list[dict[str, Any]]:
        return [{"rule": rule, "left": left} for rule, left in self.stages]


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
    scope: Scope
    seed: int


Rate = Callable[[Sequence[str]], Sequence[float | None]]
"""Concreteness (0-100) of labels; None where it could not be rated."""


def select(
    rules: Rules,
    questions: Sequence[str],
    prompt_activations: Floats,
    answer_activations: Floats,
    labels: Mapping[int, Label],
    rate: Rate | None = None,
) -> tuple[list[Chosen], Funnel]:
    """Latents to calibrate, in random order, and the funnel.

    prompt_activations: [questions, latents], max over each prompt's tokens; answer_activations:
    [answers, latents], max over unsteered answers. A latent is dead if it fires on none of these.
    Candidates are drawn from the living at random, three times as many as wanted (as published), and
    again until enough pass or none is left; only candidates whose labels came without a rating are
    given to `rate`.
    """
    n = prompt_activations.shape[1]
    peak = np.vstack([prompt_activations, answer_activations]).max(axis=0)
    pool = np.flatnonzero(peak > 0)
    order = np.random.default_rng(derive_seed(rules.seed, "latents")).permutation(pool).tolist()
    has_to_do = relevant(prompt_activations, rules.relevance)
    chosen: list[Chosen] = []
    drawn = concrete = 0
    while len(chosen) < rules.count and drawn < len(order):
        candidates = order[drawn : drawn + CANDIDATES * rules.count]
        drawn += len(candidates)
        passed = _concrete(candidates, labels, rules.concreteness_min, rate)
        concrete += len(passed)
        chosen += _irrelevant(passed, rules.scope, questions, has_to_do, labels)
    funnel = Funnel()
    funnel.note("latents of the SAE", n)
    funnel.note("fire on some prompt or unsteered answer", len(pool))
    funnel.note("drawn at random", drawn)
    if labels and rules.concreteness_min > 0:
        funnel.note(f"label rated {rules.concreteness_min:g} or more for concreteness", concrete)
    what = "irrelevant to every prompt" if rules.scope == "run" else "irrelevant to some prompt"
    funnel.note(f"{what} ({rules.relevance})", len(chosen))
    funnel.note("wanted", len(chosen[: rules.count]))
    return chosen[: rules.count], funnel


def _concrete(
    candidates: Sequence[int], labels: Mapping[int, Label], least: float, rate: Rate | None
) -> list[int]:
    """Candidates whose label is rated `least` or more; all of them where there are no labels."""
    if not labels or least <= 0:
        return list(candidates)
    named = [k for k in candidates if k in labels]
    rated = {k: labels[k].concreteness for k in named}
    unrated = [k for k in named if rated[k] is None]
    if unrated and rate is not None:
        rated |= zip(unrated, rate([labels[k].text for k in unrated]), strict=True)
    return [k for k in named if (rated[k] or 0.0) >= least]


def usable(skipped: int, questions: int, scope: Scope) -> bool:
    """Whether a direction that has to do with so many of the questions may be steered with."""
    return not skipped or (scope == "pair" and questions - skipped >= FEWEST)


def _irrelevant(
    candidates: Sequence[int],
    scope: Scope,
    questions: Sequence[str],
    has_to_do: NDArray[np.bool_],
    labels: Mapping[int, Label],
) -> list[Chosen]:
    found = []
    for k in candidates:
        skip = tuple(q for q, yes in zip(questions, has_to_do[:, k], strict=True) if yes)
        if usable(len(skip), len(questions), scope):
            found.append(Chosen(k, labels[k].text if k in labels else "", skip))
    return found


def as_json(chosen: Sequence[Chosen]) -> list[dict[str, Any]]:
    return [asdict(c) for c in chosen]


def from_json(data: Sequence[Mapping[str, Any]]) -> list[Chosen]:
    return [Chosen(d["index"], d["label"], tuple(d["skip"]), d.get("source", "sae")) for d in data]
