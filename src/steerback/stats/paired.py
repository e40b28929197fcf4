"""Two arms that share their trials: same direction, strength, question and seed.

The difference and the ratio of a measure, over pairs only, with whole clusters resampled in both arms
at once; and an exact-by-design test that swaps the arms' labels cluster by cluster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from steerback.errors import UserError
from steerback.stats import mover
from steerback.stats.bootstrap import (
    LEVEL,
    RESAMPLES,
    Floats,
    Ints,
    Mean,
    Seed,
    bootstrap,
    cluster_codes,
    percentile_interval,
    ratio,
    sum_by_cluster,
)
from steerback.stats.effects import Alternative
from steerback.stats.influence import at_least_t, of_ratio
from steerback.stats.intervals import rate_from_sums
from steerback.stats.measures import measure as find
from steerback.stats.mover import SQUARE_AND_ADD, few_events
from steerback.stats.outcomes import Outcome
from steerback.types import Rate


@dataclass(frozen=True)
class Comparison:
    """Arm b against arm a over the same trials."""

    measure: str
    a: float
    b: float
    difference: Mean
    """b - a."""
    ratio: Mean
    """b / a; infinite or NaN when a is 0."""
    p: float
    """Of the swap test; "greater" means b above a."""
    alternative: Alternative
    pairs: int
    clusters: int
    missing: int
    """Pairs left out because one side has no score."""
    unpaired: tuple[int, int]
    """Trials of a, and of b, without a twin."""


def compare(
    a: Sequence[Outcome],
    b: Sequence[Outcome],
    measure: str,
    *,
    by: Callable[[Outcome], str] = lambda o: o.pair,
    alternative: Alternative = "two-sided",
    n_resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: Seed = 0,
) -> Comparison:
    """Compare one measure between two arms, paired `by` key. Raises UserError on unusable keys."""
    spec = find(measure)
    twins, unpaired = _pair(a, b, by)
    known = [(x, y) for x, y in twins if spec.known(x) and spec.known(y)]
    codes, n_clusters = cluster_codes([x.cluster for x, _ in known])
    columns = (*spec.columns([x for x, _ in known]), *spec.columns([y for _, y in known]))
    sums = np.stack([sum_by_cluster(codes, n_clusters, c) for c in columns], axis=1)
    rng = np.random.default_rng(seed)
    means, difference, relative = _estimates(sums, n_resamples, level, rng)
    if n_clusters > 1:
        difference, relative = _at_least_t(
            difference, relative, means, columns, codes, level, positive=spec.low >= 0
        )
    if spec.is_rate:
        rates = [rate_from_sums(sums[:, i], sums[:, i + 1], 0, level) for i in (0, 2)]
        if few_events(*rates):
            difference, relative = _square_and_add(rates[0], rates[1], difference, relative)
    return Comparison(
        measure=measure,
        a=means[0],
        b=means[1],
        difference=difference,
        ratio=relative,
        p=swap_test(sums, alternative, n_resamples=n_resamples, seed=rng),
        alternative=alternative,
        pairs=len(known),
        clusters=n_clusters,
        missing=len(twins) - len(known),
        unpaired=unpaired,
    )


def _pair(
    a: Sequence[Outcome], b: Sequence[Outcome], by: Callable[[Outcome], str]
) -> tuple[list[tuple[Outcome, Outcome]], tuple[int, int]]:
    left, right = _index(a, by), _index(b, by)
    twins = [(left[key], right[key]) for key in sorted(left.keys() & right.keys())]
    if not twins:
        raise UserError(
            "no trial of one arm has a twin in the other; pair by a key both arms share"
        )
    for x, y in twins:
        if x.cluster != y.cluster:
            raise UserError(
                f"pair {by(x)!r} is in cluster {x.cluster!r} in one arm and {y.cluster!r} in the "
                "other; pair trials of the same direction"
            )
    return twins, (len(left) - len(twins), len(right) - len(twins))


def _index(outcomes: Sequence[Outcome], by: Callable[[Outcome], str]) -> dict[str, Outcome]:
    index: dict[str, Outcome] = {}
    for o in outcomes:
        if (other := index.setdefault(by(o), o)) is not o:
            raise UserError(
                f"trials {other.trial_key} and {o.trial_key} of one arm have the same pair key "
                f"{by(o)!r}; pair by a key that is unique within an arm"
            )
    return index


def _means(sums: Floats) -> tuple[Floats, Floats]:
    """[..., 4] (numerator and denominator of a, then of b) -> means of a and b [...]."""
    return ratio(sums[..., 0], sums[..., 1]), ratio(sums[..., 2], sums[..., 3])


def _estimates(
    sums: Floats, n_resamples: int, level: float, rng: np.random.Generator
) -> tuple[tuple[float, float], Mean, Mean]:
    a, b = _means(sums.sum(axis=0))
    informative = int((sums[:, 1] + sums[:, 3] > 0).sum())
    n = round(float(sums[:, [1, 3]].sum(axis=0).min()))
    draws = bootstrap(lambda w: w @ sums, len(sums), n_resamples, rng) if len(sums) else sums
    drawn_a, drawn_b = _means(draws)

    def estimate(value: Floats, samples: Floats) -> Mean:
        low, high = percentile_interval(samples, informative, level)
        low, high = min(low, float(value)), max(high, float(value))
        return Mean(float(value), low, high, n, informative, method="paired cluster bootstrap")

    difference = estimate(b - a, drawn_b - drawn_a)
    return (float(a), float(b)), difference, estimate(ratio(b, a), ratio(drawn_b, drawn_a))


def _at_least_t(
    absolute: Mean,
    relative: Mean,
    means: tuple[float, float],
    columns: Sequence[Floats],
    codes: Ints,
    level: float,
    positive: bool,
) -> tuple[Mean, Mean]:
    """Both with intervals no shorter than t's; of the ratio on the log scale, where it has one."""
    if any(math.isnan(m) for m in means):
        return absolute, relative
    a, b = of_ratio(*columns[:2]), of_ratio(*columns[2:])
    support = absolute.n, absolute.clusters
    low, high = at_least_t(
        (absolute.low, absolute.high), absolute.value, b - a, codes, support, level=level
    )
    absolute = replace(absolute, low=low, high=high)
    if positive and min(means) > 0:
        logs = -math.inf if relative.low <= 0 else math.log(relative.low), math.log(relative.high)
        low, high = at_least_t(
            logs, math.log(relative.value), b / means[1] - a / means[0], codes, support, level=level
        )
        relative = replace(relative, low=math.exp(low), high=math.exp(high))
    return absolute, relative


def _square_and_add(a: Rate, b: Rate, absolute: Mean, relative: Mean) -> tuple[Mean, Mean]:
    first, second = ((r.rate, r.low, r.high) for r in (a, b))
    wide = mover.difference(second, first)
    ratios = mover.quotient(second, first) if a.n and b.n else (math.nan, math.nan)
    return (
        replace(absolute, low=wide[0], high=wide[1], method=SQUARE_AND_ADD),
        replace(relative, low=ratios[0], high=ratios[1], method=SQUARE_AND_ADD),
    )


def swap_test(
    sums: Floats,
    alternative: Alternative = "two-sided",
    *,
    n_resamples: int = RESAMPLES,
    seed: Seed = 0,
) -> float:
    """p value of "the arms are alike": their labels are swapped at random in whole clusters.

    `sums` [clusters, 4]: numerator and denominator of a, then of b. Valid at any number of clusters
    and events (Edgington 1995); the observed labelling counts as one draw, so p is never 0. A labelling
    that leaves an arm without any case has no difference and counts as at least as extreme.
    """
    if alternative not in ("two-sided", "greater", "less"):
        raise UserError(
            f"alternative is {alternative!r}; use 'two-sided', 'greater' (b above a) or 'less'"
        )
    a, b = _means(sums.sum(axis=0))
    if np.isnan(b - a):
        return float("nan")
    swap = np.random.default_rng(seed).random((n_resamples, len(sums))) < 0.5
    # b - a as an arm is swapped in: the total stays, the part that moves changes sides.
    moved = swap.astype(np.float64) @ (sums[:, 2:] - sums[:, :2])
    total_a, total_b = sums[:, :2].sum(axis=0) + moved, sums[:, 2:].sum(axis=0) - moved
    null = ratio(total_b[:, 0], total_b[:, 1]) - ratio(total_a[:, 0], total_a[:, 1])
    seen = float(b - a)
    if alternative == "two-sided":
        null, seen = np.abs(null), abs(seen)
    elif alternative == "less":
        null, seen = -null, -seen
    # Equal differences must tie whatever the order in which they were added up.
    extreme = np.isnan(null) | (null >= seen - 1e-9 * max(1.0, abs(seen)))
    return float((1 + extreme.sum()) / (1 + n_resamples))
