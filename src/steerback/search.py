"""Searches for the strength that pulls one direction's first attempts down to a target score."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincc, expit, logit

from steerback.errors import UserError

GRID = 10_000
"""Strengths on the published grid."""
WEIGHT = 5.0
"""Observations that one round's mean score counts for, as published."""
EDGE = 0.01
"""A strength in the first or last 1% of the range did not bracket the target."""
MAX_EMPTY = 3
"""Rounds without a single valid score after which a direction is given up."""

Method = Literal["bisection", "dose-response"]
Scores = Sequence[float | None]
"""First-attempt scores 0-100 of one round; None where there is no valid score."""
Array = NDArray[np.float64]


@dataclass(frozen=True)
class SearchSettings:
    """How strengths are searched. `mean`, `sd`, `upper` are in the unit of the strength."""

    mean: float
    """Mean of the Gaussian prior, which is cut to [0, upper]."""
    sd: float
    upper: float
    target: float = 30.0
    """Score (0-100) that first attempts shall have."""
    rounds: int = 10
    """Rounds with at least one valid score."""
    method: Method = "bisection"

    def __post_init__(self) -> None:
        checks = (
            (math.isfinite(self.mean), "prior mean", "finite"),
            (0 < self.sd < math.inf, "prior sd", "above 0"),
            (0 < self.upper < math.inf, "upper", "above 0"),
            (0 < self.target < 100, "target", "between 0 and 100, both excluded"),
            (self.rounds >= 1, "rounds", "1 or more"),
            (self.method in METHODS, "method", " or ".join(map(repr, METHODS))),
        )
        for good, name, want in checks:
            if not good:
                raise UserError(f"calibration: {name} must be {want}")


class Step(NamedTuple):
    """One round of one direction."""

    strength: float
    scores: tuple[float | None, ...]


class Estimate(NamedTuple):
    """Where a search ended."""

    strength: float
    sd: float
    """Of the posterior of the threshold, in the unit of the strength."""
    failure: str
    """Why there is no threshold; empty if there is one."""


class Search(ABC):
    """A search for one direction's threshold. `ask` changes nothing; each `tell` is one round."""

    def __init__(self, settings: SearchSettings) -> None:
        self.settings = settings
        self.steps: list[Step] = []
        self._empty = 0

    @property
    def gave_up(self) -> bool:
        """Too many rounds had no valid score."""
        return self._empty >= MAX_EMPTY

    @property
    def done(self) -> bool:
        return self.gave_up or len(self.steps) - self._empty >= self.settings.rounds

    def ask(self) -> float:
        """The strength to try next: the posterior median of the threshold."""
        grid, mass = self._posterior()
        return float(grid[np.searchsorted(np.cumsum(mass), 0.5 * mass.sum())])

    def tell(self, scores: Scores) -> None:
        """Scores of first attempts at `ask()`. None is left out; a round of None moves nothing.

        Raises ValueError if a score is outside 0-100 or the search is done.
        """
        if self.done:
            raise ValueError("this search is done")
        valid = [s for s in scores if s is not None]
        if not all(0 <= s <= 100 for s in valid):
            raise ValueError(f"scores must be between 0 and 100; got {valid}")
        strength = self.ask()
        if valid:
            self._update(strength, np.asarray(valid) / 100)
        else:
            self._empty += 1
        self.steps.append(Step(strength, tuple(scores)))

    def result(self) -> Estimate:
        """The threshold so far, its posterior sd, and why it does not hold if it does not."""
        grid, mass = self._posterior()
        strength = self._threshold()
        mean = float(grid @ mass)
        sd = math.sqrt(max(float((grid - mean) ** 2 @ mass), 0.0))
        return Estimate(strength, sd, self._failure(strength))

    def _failure(self, strength: float) -> str:
        upper = self.settings.upper
        if self.gave_up:
            return f"no valid score in {self._empty} rounds"
        if strength >= (1 - EDGE) * upper:
            return f"scores stay above the target up to the largest strength, {upper:g}"
        if strength <= EDGE * upper:
            return f"scores are below the target at the smallest strengths, up to {EDGE * upper:g}"
        return ""

    @abstractmethod
    def _posterior(self) -> tuple[Array, Array]:
        """Thresholds [n] in ascending order and their probabilities [n]."""

    @abstractmethod
    def _update(self, strength: float, scores: Array) -> None:
        """Learn from the valid scores (0-1) of a round."""

    @abstractmethod
    def _threshold(self) -> float:
        """The strength to use."""


class Bisection(Search):
    """Probabilistic bisection with the published response model.

    Waeber, Frazier, Henderson (2011): the posterior's mass on the side that the response points to
    is multiplied by p, the other side's by 1 - p, the queried point's by their geometric mean. The
    response is the sign of the round's mean score s minus the target t. It is right with the
    probability that Beta(1/2 + 5 s, 1/2 + 5 (1 - s)) puts on that side of t, and is flipped if that
    is below one half: together, the side of higher strengths gets P(Beta > t).
    """

    def __init__(self, settings: SearchSettings) -> None:
        super().__init__(settings)
        self._grid = np.linspace(0.0, settings.upper, GRID)
        self._log = -0.5 * ((self._grid - settings.mean) / settings.sd) ** 2

    def _posterior(self) -> tuple[Array, Array]:
        return self._grid, _normalised(self._log)

    def _update(self, strength: float, scores: Array) -> None:
        mean = float(scores.mean())
        p_higher = betaincc(
            0.5 + WEIGHT * mean, 0.5 + WEIGHT * (1 - mean), self.settings.target / 100
        )
        at = int(np.searchsorted(self._grid, strength))
        higher, lower = np.log(p_higher), np.log1p(-p_higher)
        self._log[:at] += lower
        self._log[at] += (higher + lower) / 2
        self._log[at + 1 :] += higher

    def _threshold(self) -> float:
        return self.ask()


class DoseResponse(Search):
    """Bayesian fit of a falling logistic curve to all scores so far.

    At strength x a first attempt scores m(x) = low + (high - low) sigmoid((c - x) / w) on average.
    The posterior is kept over the threshold (where m is the target) and the curve's shape (w, low,
    high). A score s in [0, 1] has the likelihood m^s (1 - m)^(1 - s): exact for scores of 0 and 1,
    cautious for others. It asks at the median threshold, as bisection does, and ends where the
    posterior mean of m is the target. It learns from how far scores are from the target, not from
    their side alone, and every score counts as one observation, so that more prompts per round
    tell more: on noisy scores it is more exact at the same cost (`benchmarks/calibration.py`).
    """

    POINTS = 300
    WIDTHS = (0.04, 0.08, 0.16, 0.32)
    """Width w of the curve as a share of the threshold."""
    LOWS = (0.0, 0.33, 0.66)
    """Score of fully steered text as a share of the target."""
    HIGHS = (0.8, 0.95)
    """Unsteered score: how far it lies on the way from the target to 100, as a share."""
    CLIP = 0.02
    """No mean score is surer than this: a stray score must not rule a curve out."""

    def __init__(self, settings: SearchSettings) -> None:
        super().__init__(settings)
        # Denser near 0, where thresholds far below the upper bound need it.
        edges = settings.upper * np.linspace(0.0, 1.0, self.POINTS + 1) ** 2
        self._thresholds = (edges[1:] + edges[:-1]) / 2
        cells = np.meshgrid(self._thresholds, self.WIDTHS, self.LOWS, self.HIGHS, indexing="ij")
        threshold, width, low, high = (c.reshape(self.POINTS, -1) for c in cells)
        target = settings.target / 100
        self._low = low * target
        self._span = target + high * (1 - target) - self._low
        self._width = width * threshold
        self._centre = threshold + self._width * logit((target - self._low) / self._span)
        density = -0.5 * ((threshold - settings.mean) / settings.sd) ** 2
        self._log = density + np.log(np.diff(edges))[:, None]  # [POINTS, shapes]

    def _curves(self, strength: float) -> Array:
        """[POINTS, shapes]: each curve's mean score (0-1) at a strength."""
        mean = self._low + self._span * expit((self._centre - strength) / self._width)
        clipped: Array = np.clip(mean, self.CLIP, 1 - self.CLIP)
        return clipped

    def _posterior(self) -> tuple[Array, Array]:
        return self._thresholds, _normalised(self._log).sum(1)

    def _update(self, strength: float, scores: Array) -> None:
        mean = self._curves(strength)
        self._log += scores.sum() * np.log(mean) + (1 - scores).sum() * np.log1p(-mean)

    def _threshold(self) -> float:
        mass = _normalised(self._log)
        low, high = 0.0, self.settings.upper
        for _ in range(40):
            middle = (low + high) / 2
            if 100 * float((mass * self._curves(middle)).sum()) > self.settings.target:
                low = middle
            else:
                high = middle
        return (low + high) / 2


METHODS: dict[Method, type[Search]] = {"bisection": Bisection, "dose-response": DoseResponse}


def _normalised(log_mass: Array) -> Array:
    mass: Array = np.exp(log_mass - log_mass.max())
    mass /= mass.sum()
    return mass
