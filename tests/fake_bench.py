"""A bench without a model: a world of planted latents, in which it is known what each one does.

A prompt is one token, the number of its question; a response is tokens that all name the question it
answers. So a (prompt, response) pair matches where the two numbers agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steerback.protocols.base import Direction, Inputs
from steerback.protocols.bench import Floats, Pooling, Text
from steerback.records import Records
from steerback.store import Store
from steerback.types import (
    Attempt,
    Generation,
    Intervention,
    Sampling,
    Trial,
    Verdict,
    derive_seed,
)

LATENTS = 65
DETECTOR, TRACKER, DEAD, PROMPT = 7, 11, 13, 17
"""Fires on mismatch only; on some responses whatever was asked; never; on some prompts."""
QUESTIONS = tuple(f"question {i}" for i in range(24))
HELDOUT = tuple(f"question {i}" for i in range(100, 117))
JUDGE = "planted"
END = 9999
"""The token that ends a response."""


def inputs(**changes: object) -> Inputs:
    directions = tuple(
        Direction("sae", k, 1, "raw", f"latent {k}", 2.0, 0.1, frozenset(QUESTIONS[:1]))
        for k in range(20, 37)
    )
    made = Inputs("model", 5, QUESTIONS, directions, Sampling(max_new_tokens=8), "own")
    return replace(made, **changes)


class World:
    """A `Bench` on a store; `restart` says how likely a trial restarts."""

    source, steer_layer, readout_layer, n_layers = "sae", 1, 1, 5

    def __init__(self, folder: Path) -> None:
        self.store = Store.open(folder)
        self.labels = {DETECTOR: "the planted one"}

    @property
    def records(self) -> Records:
        return Records(self.store, JUDGE)

    def settings(self, protocol: str) -> dict[str, object]:
        return {"prompts_per_direction": 4} if protocol in ("esr", "baseline") else {}

    def execute(self, trials: Sequence[Trial], what: str) -> list[Generation]:
        made = [_answer(t) for t in trials]
        self.store.add(zip(trials, made, strict=True))
        return made

    def judge(self, trials: Sequence[Trial], restart: dict[int, float], otherwise: float) -> None:
        """Generate and judge: a trial restarts with the smallest chance of its clamped latents, or
        `otherwise`. Twins share their luck and their first score."""
        self.execute(trials, "")
        self.store.add_verdicts([_verdict(t, restart, otherwise) for t in trials])

    def read(
        self,
        texts: Sequence[Text],
        *,
        layer: int,
        pool: Pooling = "max",
        latents: Sequence[int] | None = None,
    ) -> Floats:
        assert layer == 1
        self.read_last = texts
        every = np.stack([_activations(t) for t in texts])
        if pool == "active":
            every = every > 0
        return (every if latents is None else every[:, list(latents)]).astype(np.float32)

    def traces(self, texts: Sequence[Text], *, layer: int, latents: Sequence[int]) -> list[Floats]:
        rows = self.read(texts, layer=layer, latents=latents)
        return [
            np.repeat(row[None], len(text.response_ids), 0)
            for row, text in zip(rows, texts, strict=True)
        ]

    def streams(self, texts: Sequence[Text], *, layer: int) -> list[Floats]:
        """Normal noise of width 6, by the text alone; a push moves the first coordinate by 8."""
        out = []
        for text in texts:
            rng = np.random.default_rng([layer, *text.prompt_ids, *text.response_ids])
            h = rng.standard_normal((len(text.response_ids), 6)) * [1, 1, 1, 1, 0.01, 0.01]
            h[:, 0] += 8.0 * bool(text.interventions)
            out.append(h.astype(np.float32))
        return out

    def nearest(self, latents: Sequence[int], count: int) -> list[list[int]]:
        return [[(k + 20 + i) % LATENTS for i in range(count)] for k in latents]

    def latent_of(self, source: str, index: int) -> int:
        return index

    def relevant(
        self, questions: Sequence[str], directions: Sequence[tuple[str, int]]
    ) -> NDArray[np.bool_]:
        found = np.zeros((len(questions), len(directions)), np.bool_)
        found[0] = True
        return found

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(map(ord, text))

    def characters(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        return [(i, i + 1) for i in range(len(ids))]


def _number(trial: Trial) -> int:
    return int(trial.question.split()[1])


def _answer(trial: Trial) -> Generation:
    """Whoever is steered answers the next question."""
    n = _number(trial)
    said = n + bool(trial.interventions)
    return Generation(trial.key, (n,), (*(said,) * (3 + n % 4), END), f"answer {said}", "eos")


def _activations(text: Text) -> NDArray[np.float64]:
    """[latents]; depends on the pair alone."""
    asked, said = text.prompt_ids[0], text.response_ids[0]
    assert END not in text.response_ids, "the token that ends a response is not read"
    rng = np.random.default_rng([asked, said])
    out = rng.exponential(size=LATENTS) * (rng.random(LATENTS) < 0.4)
    out[DETECTOR] = 0.0 if asked == said else 1 + rng.random()
    out[TRACKER] = 2.0 * (said % 3 == 0)
    out[PROMPT] = 1.5 * (asked % 2)
    out[DEAD] = 0.0
    return out


def _verdict(trial: Trial, restart: dict[int, float], otherwise: float) -> Verdict:
    rng = np.random.default_rng(derive_seed(trial.seed, trial.question))
    luck, first = rng.random(), float(rng.integers(0, 60))
    clamped = [i.index for i in trial.interventions if i.kind == "clamp"]
    chance = min([restart[k] for k in clamped if k in restart], default=otherwise)
    attempts = [Attempt(0, 4, first)]
    if luck < chance:
        attempts.append(Attempt(4, 8, 90.0))
    return Verdict(trial.key, JUDGE, tuple(attempts), "ok")


def clamped(trial: Trial) -> list[Intervention]:
    return [i for i in trial.interventions if i.kind == "clamp"]
