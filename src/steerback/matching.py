"""Random latents that are as active as chosen ones: the control of an ablation. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steerback.errors import UserError
from steerback.types import derive_seed

Floats = NDArray[np.float64]
NEAREST = 5
"""A match is drawn from so many of the latents most like its target that are not used yet."""


@dataclass(frozen=True)
class Activity:
    """How active each latent is on some text, each [latents]."""

    frequency: Floats
    """Share of tokens on which it fires."""
    mean: Floats
    """Mean activation over all tokens: what clamping it to zero takes away, in its own units."""

    @property
    def coordinates(self) -> Floats:
        """[latents, 2]: log frequency and log magnitude where it fires; both are spread over orders of
        magnitude. Dead latents are NaN."""
        alive = (self.frequency > 0) & (self.mean > 0)
        out = np.full((len(self.mean), 2), np.nan)
        out[alive, 0] = np.log10(self.frequency[alive])
        out[alive, 1] = np.log10(self.mean[alive] / self.frequency[alive])
        return out


def matched_sets(
    targets: Sequence[int], activity: Activity, excluded: Collection[int], count: int, seed: int
) -> list[list[int]]:
    """`count` disjoint sets with one latent for each target (which must fire), in the targets' order.

    Targets, dead and `excluded` latents are never drawn. Distance is Euclidean in `coordinates`, each
    axis in units of its standard deviation over the latents that may be drawn. Targets take
    turns in random order, so that none always has the last pick. UserError if too few are left.
    """
    at = activity.coordinates
    free = np.asarray(~np.isnan(at).any(axis=1))
    free[list({*excluded, *targets})] = False
    wanted = count * len(targets)
    if free.sum() < wanted:
        raise UserError(
            f"ablation: {count} random sets need {wanted} latents, but only {free.sum()} are alive "
            "and not excluded; use fewer random_sets, fewer detectors (k) or fewer neighbours"
        )
    scale = np.maximum(at[free].std(axis=0), 1e-9)
    rng = np.random.default_rng(derive_seed(seed, "matched sets"))
    sets = [[-1] * len(targets) for _ in range(count)]
    for one in sets:
        for place in rng.permutation(len(targets)):
            left = np.flatnonzero(free)
            distance = np.linalg.norm((at[left] - at[targets[place]]) / scale, axis=1)
            near = left[np.argsort(distance, kind="stable")[:NEAREST]]
            one[place] = int(rng.choice(near))
            free[one[place]] = False
    return sets
