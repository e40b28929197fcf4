"""How close calibration comes to its target, on simulated directions whose truth is known.

    python benchmarks/calibration.py [--directions 300]

Each direction has a logistic dose-response with a threshold, steepness and prompt effects of its
own. `true` is the mean score over all prompts at the strength found; `of 20` and `of 60` are means
of so many fresh generations, which is what a run can measure. These columns give the share of
directions within 8 points of the target, 30. `mean` and `sd` are of the true scores.
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from steerback.search import METHODS, Method, SearchSettings

Array = NDArray[np.float64]
PRIOR = SearchSettings(mean=0.5, sd=0.3, upper=2.0)
PROMPTS = 40
# Low mode, high mode, spread of a mode; None: scores lie between the modes, not in one of them.
WORLDS: dict[str, tuple[float, float, float | None]] = {
    "20 or 85": (20, 85, 8),
    "5 or 92": (5, 92, 8),
    "0 or 100": (0, 100, 0),
    "one mode": (5, 95, None),
}


class Directions:
    """Invented directions of one world. Strengths are arrays [n]."""

    def __init__(self, world: str, n: int, centre: tuple[float, float], seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.low, self.high, self.spread = WORLDS[world]
        drawn = self.rng.normal(*centre, size=50 * n)
        threshold = drawn[(drawn > 0.05) & (drawn < 1.7)][:n, None]
        self.width = threshold * self.rng.uniform(0.06, 0.25, size=(n, 1))
        odds = logit((PRIOR.target - self.low) / (self.high - self.low))
        effects = threshold * self.rng.normal(0, 0.12, size=(n, PROMPTS))
        self.centre = threshold + odds * self.width + effects

    def share_high(self, strength: Array) -> Array:
        """[n, PROMPTS]: chance of the high mode."""
        return np.asarray(expit((self.centre - strength[:, None]) / self.width))

    def true_mean(self, strength: Array) -> Array:
        """[n]: mean score over all prompts."""
        return self.low + (self.high - self.low) * self.share_high(strength).mean(1)

    def scores(self, strength: Array, k: int) -> Array:
        """[n, k]: scores of k prompts drawn at random."""
        picks = self.rng.integers(PROMPTS, size=(len(strength), k))
        share = np.take_along_axis(self.share_high(strength), picks, 1)
        if self.spread is None:
            mean = (self.low + (self.high - self.low) * share) / 100
            return 100 * self.rng.beta(4 * mean, 4 * (1 - mean))
        mode = np.where(self.rng.random(share.shape) < share, self.high, self.low)
        return np.clip(mode + self.rng.normal(0, self.spread, share.shape), 0, 100)


def calibrated(directions: Directions, n: int, method: Method, k: int) -> Array:
    """[n]: the strength that each search ends at."""
    settings = SearchSettings(PRIOR.mean, PRIOR.sd, PRIOR.upper, method=method)
    searches = [METHODS[method](settings) for _ in range(n)]
    for _ in range(settings.rounds):
        asked = np.array([s.ask() for s in searches])
        for search, scores in zip(searches, directions.scores(asked, k), strict=True):
            search.tell(scores.tolist())
    return np.array([s.result().strength for s in searches])


def row(world: str, centre: tuple[float, float], method: Method, k: int, n: int) -> str:
    directions = Directions(world, n, centre, seed=1)
    strength = calibrated(directions, n, method, k)
    true = directions.true_mean(strength)
    seen = [directions.scores(strength, fresh).mean(1) for fresh in (20, 60)]
    within = [np.mean(np.abs(x - PRIOR.target) <= 8) for x in (true, *seen)]
    place = f"{centre[0]:g} +- {centre[1]:g}"
    return (
        f"{world:10} {place:>10} {k:>7}  {method:14} "
        + "".join(f"{share:>7.0%}" for share in within)
        + f" {true.mean():>7.1f} {true.std():>5.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--directions", type=int, default=300)
    n = parser.parse_args().directions
    print(f"{PRIOR.rounds} rounds, prior {PRIOR.mean} +- {PRIOR.sd}, {n} directions per row")
    print("scores     thresholds prompts  method           true  of 20  of 60    mean    sd")
    for world in WORLDS:
        for k in (4, 6, 10):
            for method in METHODS:
                print(row(world, (0.5, 0.3), method, k, n), flush=True)
    for method in METHODS:  # the prior is wrong: thresholds lie 1.7 sd above its mean
        print(row("5 or 92", (1.0, 0.2), method, 6, n), flush=True)


if __name__ == "__main__":
    main()
