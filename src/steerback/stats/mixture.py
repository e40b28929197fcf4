"""Binomial counts of cells whose rates differ: the beta-binomial mixture, fitted by likelihood.

Cell i has k_i events in n_i trials, and a rate drawn from Beta(a, b) (Skellam 1948, JRSS B 10:257).
The mean a / (a + b) is what an average cell does; rho = 1 / (a + b + 1) is the correlation of two
trials of a cell: 0 if all cells have one rate, 1 if each cell always or never does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from steerback.errors import UserError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
SMALLEST, LARGEST = 1e-6, 1 - 1e-6
"""Bounds of rho in the fit: below the first, cells are as good as equal."""
DRAWS = 2000


@dataclass(frozen=True)
class Mixture:
    """The fitted distribution of rates over cells."""

    mean: float
    rho: float
    p: float
    """Of the likelihood ratio test that all cells have one rate; half of chi-square's with one degree of
    freedom, for rho cannot be negative (Self and Liang 1987)."""

    @property
    def shape(self) -> tuple[float, float]:
        """a and b of the beta distribution."""
        size = 1 / self.rho - 1
        return self.mean * size, (1 - self.mean) * size


@dataclass(frozen=True)
class Shrunk:
    """A cell's rate with what the other cells say: its posterior under the mixture."""

    rate: float
    low: float
    high: float
    """95% of the posterior; the fitted mixture is taken as known."""


def _arrays(k: Sequence[int], n: Sequence[int]) -> tuple[Floats, Floats]:
    events, trials = np.asarray(k, np.float64), np.asarray(n, np.float64)
    if len(events) != len(trials) or (events > trials).any() or (events < 0).any():
        raise UserError("mixture: each cell needs 0 <= events <= trials")
    kept = trials > 0
    return events[kept], trials[kept]


def log_likelihood(k: Floats, n: Floats, mean: float, rho: float) -> float:
    """Sum over cells; the binomial coefficients are left out, for they do not depend on the rates."""
    if mean in (0.0, 1.0):
        return 0.0 if (k == n * mean).all() else -np.inf
    if rho <= SMALLEST:
        return float(np.sum(special.xlogy(k, mean) + special.xlog1py(n - k, -mean)))
    size = 1 / rho - 1
    a, b = mean * size, (1 - mean) * size
    return float(np.sum(special.betaln(a + k, b + n - k) - special.betaln(a, b)))


def fit(k: Sequence[int], n: Sequence[int]) -> Mixture:
    """Maximum likelihood over mean and rho. Cells without trials say nothing. UserError without any."""
    events, trials = _arrays(k, n)
    if not len(events):
        raise UserError("mixture: no cell has a trial")
    pooled = float(events.sum() / trials.sum())
    if pooled in (0.0, 1.0):
        return Mixture(pooled, SMALLEST, 1.0)

    def cost(x: Floats) -> float:
        return -log_likelihood(events, trials, *map(float, special.expit(x)))

    edge = special.logit(SMALLEST)
    starts = [np.array([special.logit(pooled), special.logit(rho)]) for rho in (0.01, 0.3, 0.9)]
    bounds = [(-20.0, 20.0), (edge, -edge)]
    found = [optimize.minimize(cost, x, method="L-BFGS-B", bounds=bounds) for x in starts]
    best = min(found, key=lambda r: float(r.fun))
    alone = log_likelihood(events, trials, pooled, SMALLEST)
    gain = max(0.0, -float(best.fun) - alone)
    if gain == 0:
        return Mixture(pooled, SMALLEST, 1.0)
    mean, rho = map(float, special.expit(best.x))
    return Mixture(mean, rho, float(stats.chi2.sf(2 * gain, 1) / 2))


def shrunk(k: int, n: int, mixture: Mixture) -> Shrunk:
    """The posterior Beta(a + k, b + n - k) of one cell."""
    if mixture.mean in (0.0, 1.0):
        return Shrunk(mixture.mean, mixture.mean, mixture.mean)
    a, b = mixture.shape
    posterior = stats.beta(a + k, b + n - k)
    low, high = posterior.ppf([0.025, 0.975])
    return Shrunk(float((a + k) / (a + b + n)), float(low), float(high))


def luck_of_the_best(k: Sequence[int], n: Sequence[int], seed: int = 0) -> float:
    """P(the best cell's rate is as high or higher) if all cells have the pooled rate: simulated, the
    observed counts among the draws, so that it is never 0. The price of having picked the best."""
    events, trials = _arrays(k, n)
    pooled = events.sum() / trials.sum()
    rng = np.random.default_rng(seed)
    drawn = rng.binomial(trials.astype(np.int64), pooled, (DRAWS, len(trials))) / trials
    best = float((events / trials).max())
    return float((1 + np.sum(drawn.max(axis=1) >= best - 1e-12)) / (DRAWS + 1))
