"""The strength at which a direction pulls first attempts down to a target score: ask and tell.

Nothing here generates or judges. A driver asks for a strength, generates and judges at it, and
tells the scores; many directions advance together, one batch per round:

    calibrator = Calibrator(directions, settings)
    while strengths := calibrator.ask():
        calibrator.tell({d: scores_at(d, s) for d, s in strengths.items()})
    for direction, strength in calibrator.verify().items():
        outcome = calibrator.conclude(direction, scores_at_fresh_prompts, key)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from steerback.errors import UserError
from steerback.search import METHODS, Scores, SearchSettings
from steerback.types import Calibration, Sampling, derive_seed, stable_hash

RULES = 1
"""Raised whenever a change to the searches or to the rules below can change a calibration."""
MAX_OFF = 30.0
"""Points between achieved score and target beyond which the target was not reached."""


class Outcome(NamedTuple):
    """A finished calibration and, if the target was not reached, why."""

    calibration: Calibration
    reason: str


class Calibrator:
    """Searches of many directions that advance together."""

    def __init__(self, directions: Iterable[str], settings: SearchSettings) -> None:
        self.settings = settings
        make = METHODS[settings.method]
        self.searches = {direction: make(settings) for direction in directions}

    def ask(self) -> dict[str, float]:
        """The strength to try for each direction that is not done; empty when all are."""
        return {d: s.ask() for d, s in self.searches.items() if not s.done}

    def tell(self, scores: Mapping[str, Scores]) -> None:
        """First-attempt scores at the strengths asked for, in any order and any subset."""
        for direction, got in scores.items():
            self.searches[direction].tell(got)

    def verify(self) -> dict[str, float]:
        """The final strength of each direction that has one, to be tried on fresh prompts."""
        found = {d: s.result() for d, s in self.searches.items()}
        return {d: e.strength for d, e in found.items() if not e.failure}

    def conclude(self, direction: str, fresh: Scores, key: str) -> Outcome:
        """The calibration of a direction, with what it achieved on fresh prompts and seeds.

        The target counts as reached if the search found a strength inside its range and the mean
        fresh score is within `MAX_OFF` points of the target. Directions that `verify` left out
        are concluded with no fresh scores.
        """
        estimate = self.searches[direction].result()
        valid = [s for s in fresh if s is not None]
        achieved = sum(valid) / len(valid) if valid else None
        reason = estimate.failure or _miss(achieved, self.settings.target)
        found = Calibration(
            key, direction, estimate.strength, estimate.sd, achieved, len(valid), not reason
        )
        return Outcome(found, reason)

    def steps(self, direction: str) -> list[dict[str, Any]]:
        """The rounds of a direction as JSON values, for the store."""
        return [
            {"strength": s.strength, "scores": list(s.scores)}
            for s in self.searches[direction].steps
        ]


def _miss(achieved: float | None, target: float) -> str:
    if achieved is None:
        return "no valid score on fresh prompts"
    if abs(achieved - target) > MAX_OFF:
        return f"fresh prompts score {achieved:.0f}, more than {MAX_OFF:g} off the target"
    return ""


def calibration_key(
    *,
    direction: str,
    layer: int,
    unit: str,
    positions: str,
    model: str,
    judge: str,
    sampling: Sampling,
    prompts: str,
    prompts_per_round: int,
    fresh: int,
    settings: SearchSettings,
    seed: int,
    variant: Sequence[str] = (),
) -> str:
    """Hash of all that a calibration depends on. `model` and `prompts` should be content hashes."""
    ways = {"variant": list(variant)} if variant else {}
    return stable_hash(
        {
            **ways,
            "rules": RULES,
            "direction": [direction, layer, unit, positions],
            "model": model,
            "judge": judge,
            "sampling": asdict(sampling),
            "prompts": [prompts, prompts_per_round, fresh],
            "settings": asdict(settings),
            "seed": seed,
        }
    )


class PromptPlan:
    """Which prompts and seeds a direction's rounds use, and which are kept fresh to verify.

    The prompts are shuffled per direction. `fresh` of them (at most half) are kept for
    verification; the rounds walk through the others in turn, so that none is used twice before all
    have been used once.
    """

    def __init__(self, n_prompts: int, direction: str, seed: int, fresh: int = 20) -> None:
        if n_prompts < 2:
            raise UserError(
                f"calibration: {n_prompts} prompt(s) cannot give fresh ones to verify on; "
                "use 2 or more"
            )
        shuffle = np.random.default_rng(derive_seed(seed, "calibration", direction))
        order = shuffle.permutation(n_prompts).tolist()
        kept = min(fresh, n_prompts // 2)
        self._fresh, self._search = order[:kept], order[kept:]
        self._direction, self._seed = direction, seed

    def round(self, number: int, count: int) -> list[tuple[int, int]]:
        """(prompt index, seed) for each of the `count` generations of a round, counted from 0."""
        return self._draws("search", self._search, number * count, count)

    def fresh(self, count: int) -> list[tuple[int, int]]:
        """(prompt index, seed) for each of the `count` generations of the verification."""
        return self._draws("fresh", self._fresh, 0, count)

    def _draws(
        self, purpose: str, prompts: list[int], first: int, count: int
    ) -> list[tuple[int, int]]:
        return [
            (
                prompts[i % len(prompts)],
                derive_seed(self._seed, "calibration", self._direction, purpose, i),
            )
            for i in range(first, first + count)
        ]
