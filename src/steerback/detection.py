"""Which latents tell a response that answers its prompt from one that answers another: rankings.

Pure arithmetic on pooled activations [responses, latents]; nothing is read or generated here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steerback.errors import UserError
from steerback.stats import auc, cohens_d, holm, welch
from steerback.types import derive_seed

Floats = NDArray[np.float64]
Readings = NDArray[np.float32]
Ints = NDArray[np.int64]
Rule = Literal["strict", "separability", "cohens-d"]

ZERO = 1e-8
"""Activations below this are zero (the published rule)."""
SHARE = 0.8
"""Share of mismatched pairs that a latent must fire on under the strict rule, as published."""
LARGEST_D = 1e3
"""Cohen's d is cut here: it is infinite where nothing varies within the groups."""
_BLOCK = 4096
"""Latents worked on at a time: statistics copy their input several times over."""


def derangements(n: int, count: int, seed: int) -> Ints:
    """[count, n]: for each response the prompt it is read after; never its own, never one twice.

    The prompts stand in one random order and each derangement moves on by another number of places, so
    all (prompt, response) pairs are different and each is equally likely. Raises UserError when there
    are too few prompts for that.
    """
    if count > n - 1:
        raise UserError(
            f"detectors: {n} questions allow {max(n - 1, 0)} derangements, not {count}; "
            "use fewer, or more questions"
        )
    rng = np.random.default_rng(derive_seed(seed, "derangements"))
    order = rng.permutation(n)
    place = np.argsort(order)
    shifts = 1 + rng.permutation(n - 1)[:count]
    return np.stack([order[(place + shift) % n] for shift in shifts])


@dataclass(frozen=True)
class Ranking:
    """One value per latent, each [latents]; mismatched pairs are those of all derangements."""

    on_matched: Floats
    """Share of matched pairs on which it fires at all."""
    on_mismatched: Floats
    mean_matched: Floats
    mean_mismatched: Floats
    auc: Floats
    """P(mismatched above matched) + P(equal) / 2."""
    d: Floats
    """Cohen's d, mismatched minus matched."""
    p: Floats
    """Welch's test, one-sided (mismatched above matched). A response counts once: with its mean over
    the derangements, because its mismatched pairs are not independent."""
    p_holm: Floats
    """p adjusted for all latents of the SAE."""

    def __len__(self) -> int:
        return len(self.auc)

    @property
    def strict(self) -> NDArray[np.bool_]:
        """Zero on every matched pair, not zero on at least 80% of the mismatched ones."""
        return np.asarray((self.on_matched == 0) & (self.on_mismatched >= SHARE))

    def as_json(self) -> dict[str, list[float]]:
        """Columns with six significant digits."""
        return {f.name: [float(f"{x:.6g}") for x in getattr(self, f.name)] for f in fields(self)}

    @classmethod
    def from_json(cls, columns: Mapping[str, Sequence[float]]) -> Ranking:
        return cls(**{f.name: np.asarray(columns[f.name], np.float64) for f in fields(cls)})

    def row(self, latent: int) -> dict[str, Any]:
        """The numbers of one latent."""
        return {f.name: float(getattr(self, f.name)[latent]) for f in fields(self)}


def rank(matched: Readings, mismatched: Readings) -> Ranking:
    """matched: [responses, latents]; mismatched: [derangements, responses, latents]."""
    blocks = [
        _rank(matched[:, start : start + _BLOCK], mismatched[:, :, start : start + _BLOCK])
        for start in range(0, matched.shape[1], _BLOCK)
    ]
    columns = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    return Ranking(**columns, p_holm=holm(columns["p"]))


def _rank(matched: Readings, mismatched: Readings) -> dict[str, Floats]:
    pooled = mismatched.reshape(-1, matched.shape[1])
    single = mismatched.mean(axis=0, dtype=np.float64)
    return {
        "on_matched": (np.abs(matched) >= ZERO).mean(axis=0),
        "on_mismatched": (np.abs(pooled) >= ZERO).mean(axis=0),
        "mean_matched": matched.mean(axis=0, dtype=np.float64),
        "mean_mismatched": pooled.mean(axis=0, dtype=np.float64),
        "auc": auc(pooled, matched),
        "d": np.clip(cohens_d(pooled, matched), -LARGEST_D, LARGEST_D),
        "p": welch(single, matched, "greater").p,
    }


def order(ranking: Ranking, rule: Rule) -> Ints:
    """Latents from the best to the worst; ties go to the larger AUC, then the larger d.

    strict: those that meet the rule first, then by how much oftener they fire on mismatched pairs;
    separability: by AUC; cohens-d: by d.
    """
    oftener = ranking.on_mismatched - ranking.on_matched
    keys: dict[Rule, tuple[Floats, ...]] = {
        "strict": (ranking.strict.astype(np.float64), oftener, ranking.auc, ranking.d),
        "separability": (ranking.auc, ranking.d),
        "cohens-d": (ranking.d, ranking.auc),
    }
    return np.lexsort([-key for key in reversed(keys[rule])])


@dataclass(frozen=True)
class Choice:
    """How detectors are chosen from a ranking."""

    rule: Rule
    k: int
    """At most so many."""
    auc_min: float
    """Least AUC under the rule separability."""
    d_min: float
    """Least d under the rule cohens-d."""

    def passes(self, ranking: Ranking) -> NDArray[np.bool_]:
        """[latents]"""
        if self.rule == "strict":
            return ranking.strict
        if self.rule == "separability":
            return np.asarray(ranking.auc >= self.auc_min)
        return np.asarray(ranking.d >= self.d_min)

    def choose(self, ranking: Ranking) -> list[int]:
        """The best k of those that pass; fewer, or none, where fewer do."""
        good = self.passes(ranking)
        return [int(i) for i in order(ranking, self.rule) if good[i]][: self.k]


def overlap(chosen: Sequence[int], ranking: Ranking, rule: Rule) -> float:
    """Share of `chosen` that are among the best so many of another ranking; NaN for none."""
    best = set(order(ranking, rule)[: len(chosen)].tolist())
    return len(best & set(chosen)) / len(chosen) if chosen else float("nan")
