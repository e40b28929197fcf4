"""How many latents x prompts a paired comparison needs, by simulation.

Each latent has its own rate, Beta distributed with the given mean and intraclass correlation; the same
latent sits at the same quantile in both arms. Given the latent, the two outcomes of a pair correlate by
`pair_correlation` (cut to what two binary outcomes of those rates can have). The analysis that is
simulated is the t test over clusters of the paired difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from steerback.errors import UserError
from steerback.stats.bootstrap import Floats, Seed, ratio
from steerback.stats.intervals import wilson

LATENTS = (25, 50, 100, 200, 400, 800)
PROMPTS = (1, 2, 5, 10)
_QUANTILES = np.linspace(0, 1, 1025)
_CHUNK = 1 << 20
"""Clusters simulated at a time."""


@dataclass(frozen=True)
class Design:
    """Power of one design; `low`, `high`: Wilson interval of the simulation's own error."""

    latents: int
    prompts: int
    power: float
    low: float
    high: float

    @property
    def trials(self) -> int:
        """Generations per arm."""
        return self.latents * self.prompts


@dataclass(frozen=True)
class Power:
    grid: tuple[Design, ...]
    target: float
    smallest: Design | None
    """Fewest trials per arm with the power asked for; more latents first at a tie. None: none did."""


def power(
    rate_a: float,
    rate_b: float,
    *,
    latents: Sequence[int] = LATENTS,
    prompts: Sequence[int] = PROMPTS,
    icc: float = 0.1,
    pair_correlation: float = 0.3,
    alpha: float = 0.05,
    target: float = 0.8,
    n_sims: int = 1000,
    seed: Seed = 0,
) -> Power:
    """Chance of a significant (two-sided `alpha`) paired change from `rate_a` to `rate_b` per design."""
    _check(rate_a, rate_b, latents, prompts, icc, pair_correlation, alpha, target, n_sims)
    rng = np.random.default_rng(seed)
    quantiles = _beta_quantiles(rate_a, icc), _beta_quantiles(rate_b, icc)
    grid = tuple(
        _design(c, m, quantiles, pair_correlation, alpha, n_sims, rng)
        for c in latents
        for m in prompts
    )
    enough = [d for d in grid if d.power >= target]
    smallest = min(enough, key=lambda d: (d.trials, -d.latents), default=None)
    return Power(grid, target, smallest)


def _check(
    rate_a: float,
    rate_b: float,
    latents: Sequence[int],
    prompts: Sequence[int],
    icc: float,
    pair_correlation: float,
    alpha: float,
    target: float,
    n_sims: int,
) -> None:
    checks = (
        (0 < rate_a < 1, "rate_a", rate_a, "between 0 and 1"),
        (0 < rate_b < 1, "rate_b", rate_b, "between 0 and 1"),
        (bool(latents) and min(latents) >= 2, "latents", latents, "2 or more each"),
        (bool(prompts) and min(prompts) >= 1, "prompts", prompts, "1 or more each"),
        (0 <= icc < 1, "icc", icc, "in [0, 1)"),
        (-1 <= pair_correlation <= 1, "pair_correlation", pair_correlation, "in [-1, 1]"),
        (0 < alpha < 1, "alpha", alpha, "between 0 and 1"),
        (0 < target < 1, "target", target, "between 0 and 1"),
        (n_sims >= 1, "n_sims", n_sims, "1 or more"),
    )
    for good, name, value, want in checks:
        if not good:
            raise UserError(f"power: {name} is {value}; it must be {want}")


def _beta_quantiles(mean: float, icc: float) -> Floats:
    """Rates at `_QUANTILES` of Beta with this mean and intraclass correlation 1 / (a + b + 1)."""
    if icc == 0:
        return np.full_like(_QUANTILES, mean)
    size = (1 - icc) / icc
    middle = (_QUANTILES[:-1] + _QUANTILES[1:]) / 2
    rates = special.betaincinv(mean * size, (1 - mean) * size, middle)
    return np.asarray(rates * (mean / rates.mean()))


def _design(
    latents: int,
    prompts: int,
    quantiles: tuple[Floats, Floats],
    correlation: float,
    alpha: float,
    n_sims: int,
    rng: np.random.Generator,
) -> Design:
    threshold = float(special.stdtrit(latents - 1, 1 - alpha / 2))
    hits, block = 0, max(1, _CHUNK // latents)
    for start in range(0, n_sims, block):
        shape = (min(block, n_sims - start), latents)
        difference = _differences(shape, prompts, quantiles, correlation, rng)
        error = difference.std(axis=1, ddof=1) / np.sqrt(latents)
        # No pair ever differs: 0/0, which is no evidence.
        hits += int((np.abs(ratio(difference.mean(axis=1), error)) > threshold).sum())
    return Design(latents, prompts, hits / n_sims, *wilson(hits, n_sims))


def _differences(
    shape: tuple[int, int],
    prompts: int,
    quantiles: tuple[Floats, Floats],
    correlation: float,
    rng: np.random.Generator,
) -> Floats:
    """Successes of b minus successes of a in each simulated latent [sims, latents]."""
    latent = rng.integers(0, len(quantiles[0]), size=shape)
    a, b = quantiles[0][latent], quantiles[1][latent]
    both = a * b + correlation * np.sqrt(a * (1 - a) * b * (1 - b))
    both = np.clip(both, np.maximum(0, a + b - 1), np.minimum(a, b))
    only_b = rng.binomial(prompts, b - both)
    rest = np.clip(ratio(a - both, 1 - (b - both)), 0, 1)
    only_a = rng.binomial(prompts - only_b, np.nan_to_num(rest))
    return (only_b - only_a).astype(np.float64)
