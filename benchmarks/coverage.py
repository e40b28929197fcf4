"""How often the 95% intervals hold the truth, on data whose truth is known.

    python benchmarks/coverage.py [--sims 2000] [--only few]

Prints four tables: one rate (beta-binomial trials clustered by direction), paired arms, the measures
that need scores, and the same with few directions and scores of two kinds, there also with the bootstrap
alone, as it was before the t interval became its floor. Each coverage is followed by the share of
intervals that lie too high and too low. The Monte Carlo standard error is 0.5 points at 2,000
simulations, 1 point at the 500 of all tables but the first.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import product
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from steerback.stats import Outcome, compare, summarise, summary, wilson
from steerback.stats import paired as paired_arms
from steerback.stats.bootstrap import percentile_interval, ratio, resamples
from steerback.stats.influence import at_least_t
from steerback.stats.intervals import clustered_wilson

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

UNEQUAL = np.r_[np.full(50, 1), np.full(30, 5), np.full(20, 16)]
DESIGNS = {
    "100 x 5": np.full(100, 5),
    "20 x 10": np.full(20, 10),
    "25 x 20": np.full(25, 20),
    "100, 1-16": UNEQUAL,
    "500 x 10": np.full(500, 10),
}
RATES = (0.01, 0.05, 0.3, 0.5)


def share(intervals: Floats, truth: float) -> str:
    """Coverage (too high / too low) in percent, and the median width; intervals [sims, 2]."""
    intervals = intervals[~np.isnan(intervals).any(axis=1)]
    high, low = np.mean(intervals[:, 0] > truth), np.mean(intervals[:, 1] < truth)
    with np.errstate(invalid="ignore"):
        width = np.median(intervals[:, 1] - intervals[:, 0])
    return f"{100 * (1 - high - low):5.1f} ({100 * high:4.1f}/{100 * low:4.1f}) {width:7.3f}"


def successes(rng: np.random.Generator, sizes: Ints, rate: float, icc: float, sims: int) -> Floats:
    """[sims, clusters]."""
    q = np.full((sims, len(sizes)), rate)
    if icc:
        a, b = rate * (1 - icc) / icc, (1 - rate) * (1 - icc) / icc
        q = rng.beta(a, b, size=q.shape)
    return rng.binomial(sizes, q).astype(float)


def one_rate(sims: int, rng: np.random.Generator) -> Iterator[str]:
    yield "One rate: coverage of 95% (too high/too low) and median width"
    head = "default (clustered Wilson)", "cluster bootstrap", "Wilson, trials independent"
    yield f"{'clusters x trials':18}{'rate':>6}{'ICC':>5}   " + "   ".join(f"{h:26}" for h in head)
    for icc in (0.1, 0.0, 0.3):
        for name, sizes in DESIGNS.items():
            for rate in RATES:
                data = successes(rng, sizes, rate, icc, sims)
                cells = "   ".join(f"{share(x, rate):26}" for x in rate_intervals(data, sizes))
                yield f"{name:18}{rate:6.2f}{icc:5.1f}   {cells}"


def rate_intervals(data: Floats, sizes: Ints) -> tuple[Floats, Floats, Floats]:
    """The same resamples serve all simulated data sets: they are drawn without looking at them."""
    trials = sizes.astype(float)
    draws = np.concatenate(
        [ratio(w @ data.T, (w @ trials)[:, None]) for w in resamples(len(sizes), 1000, 1)]
    )
    return (
        np.array([clustered_wilson(k, trials) for k in data]),
        np.array([percentile_interval(column, len(trials)) for column in draws.T]),
        np.array([wilson(k.sum(), trials.sum()) for k in data]),
    )


def paired(sims: int, rng: np.random.Generator) -> Iterator[str]:
    yield "Paired arms, ICC 0.1: coverage of the difference and of the ratio; swap test at 0.05"
    yield f"{'clusters x trials':18}{'a':>6}{'b':>7}   {'difference':26}   {'ratio':26}   rejected"
    for name in ("100 x 5", "20 x 10", "25 x 20"):
        for a, b in ((0.01, 0.01), (0.05, 0.05), (0.074, 0.037), (0.3, 0.3), (0.3, 0.2)):
            found = [one_pair(rng, DESIGNS[name], a, b) for _ in range(sims)]
            difference, quotient = (np.array([f[i] for f in found]) for i in (0, 1))
            rejected = np.mean([f[2] <= 0.05 for f in found])
            yield (
                f"{name:18}{a:6.3f}{b:7.3f}   {share(difference, b - a):26}   "
                f"{share(quotient, b / a):26}   {100 * rejected:5.1f}"
            )


Bounds = tuple[float, float]


def one_pair(
    rng: np.random.Generator, sizes: Ints, a: float, b: float
) -> tuple[Bounds, Bounds, float]:
    """Two arms over the same latents and, for half of the trials, the same luck."""
    q = rng.beta(9 * a, 9 * (1 - a), len(sizes)).repeat(sizes)
    luck, fresh = rng.random((2, len(q)))
    tied = rng.random(len(q)) < 0.5
    # Thinning (b <= a) keeps each latent's rate in proportion.
    first, second = luck < q, np.where(tied, luck, fresh) < q * b / a
    clusters = np.arange(len(sizes)).repeat(sizes)
    before, after = (
        [
            binary(bool(y), f"k{c}", f"{i}")
            for i, (y, c) in enumerate(zip(ys, clusters, strict=True))
        ]
        for ys in (first, second)
    )
    c = compare(before, after, "multi_attempt", n_resamples=500, seed=rng)
    return (c.difference.low, c.difference.high), (c.ratio.low, c.ratio.high), c.p


def binary(restarted: bool, cluster: str, pair: str) -> Outcome:
    return Outcome(pair, cluster, False, 1 + restarted, False, 50.0, 50.0, pair=pair)


MEASURES = (
    "first_score",
    "score_delta",
    "cond_improvement",
    "chance_improvement",
    "chance_same_direction",
    "improvement_above_chance",
    "improvement_above_same_direction",
    "esr",
    "esr_above_chance",
)


def scored(sims: int, rng: np.random.Generator) -> Iterator[str]:
    yield "Measures from scores; restarts are fresh draws of their direction"
    yield f"{'clusters x trials':18}{'restarts':>9}  {'measure':34}{'truth':>8}   coverage, width"
    for restart in (0.02, 0.1, 0.5):
        truth = summarise(scored_arm(rng, 40_000, 10, restart), n_resamples=2)
        for clusters, per_cluster in ((100, 5), (25, 20)):
            found = [
                summarise(
                    scored_arm(rng, clusters, per_cluster, restart), n_resamples=500, seed=rng
                )
                for _ in range(sims)
            ]
            for name in MEASURES:
                exact = getattr(truth, name)
                value = exact.value if hasattr(exact, "value") else exact.rate
                each = (getattr(s, name) for s in found)
                bounds = np.array([(x.low, x.high) for x in each])
                yield (
                    f"{f'{clusters} x {per_cluster}':18}{truth.multi_attempt.rate:9.3f}  "
                    f"{name:34}{value:8.3f}   {share(bounds, value)}"
                )


def scored_arm(
    rng: np.random.Generator, clusters: int, per_cluster: int, restart: float
) -> list[Outcome]:
    """Bad first attempts restart more often; the second attempt knows nothing of the first."""
    centre = rng.normal(50, 15, clusters).repeat(per_cluster)
    first, last = np.clip(np.round(centre + rng.normal(0, 25, (2, len(centre)))), 0, 100)
    again = rng.random(len(centre)) < restart * (2 - first / 50)
    return outcomes(first, last, again, per_cluster)


def outcomes(first: Floats, last: Floats, again: Bools, per_cluster: int) -> list[Outcome]:
    """Trials in the order of their clusters; `last` counts where a trial restarted."""
    return [
        Outcome(
            f"{i:06d}",
            f"k{i // per_cluster:05d}",
            False,
            2 if again[i] else 1,
            False,
            float(first[i]),
            float(last[i] if again[i] else first[i]),
            pair=str(i),
        )
        for i in range(len(first))
    ]


FEW = (*MEASURES[:2], *MEASURES[3:7], "esr_above_chance")
PAIRED = "first_score, difference"


def few(sims: int, rng: np.random.Generator) -> Iterator[str]:
    yield "Few directions, scores near 0 or near 90: the bootstrap alone, and as it is (coverage, width)"
    head = "bootstrap alone", "default"
    yield f"{'clusters x trials':18}{'ICC':>4}  {'measure':34}" + "   ".join(
        f"{h:26}" for h in head
    )
    for icc in (0.1, 0.3):
        many = two_kinds(rng, 40_000, 10, icc)
        truth = {name: getattr(summarise(many[0], n_resamples=2), name).value for name in FEW}
        truth[PAIRED] = compare(*many, "first_score", n_resamples=2).difference.value
        for clusters, per_cluster in product((4, 8, 12, 24), (6, 20)):
            found = [bounds_of(two_kinds(rng, clusters, per_cluster, icc)) for _ in range(sims)]
            for name, value in truth.items():
                cells = "   ".join(
                    f"{share(np.array([f[way][name] for f in found]), value):26}" for way in (0, 1)
                )
                yield f"{f'{clusters} x {per_cluster}':18}{icc:4.1f}  {name:34}{cells}"


def two_kinds(
    rng: np.random.Generator, clusters: int, per_cluster: int, icc: float
) -> tuple[list[Outcome], list[Outcome]]:
    """Two arms over the same directions. Three answers in ten are on the topic (75 to 100), the others
    score little; the second arm has four fifths as many. Half of the others restart."""
    rate = rng.beta(0.3 * (1 - icc) / icc, 0.7 * (1 - icc) / icc, clusters).repeat(per_cluster)
    return one_kind_or_other(rng, rate, per_cluster), one_kind_or_other(
        rng, 0.8 * rate, per_cluster
    )


def one_kind_or_other(rng: np.random.Generator, rate: Floats, per_cluster: int) -> list[Outcome]:
    n = len(rate)
    good, low = rng.random(n) < rate, rng.choice([0.0, 0.0, 0.0, 10.0, 33.0], n)
    first = np.where(good, rng.uniform(75, 100, n).round(), low)
    again = ~good & (rng.random(n) < 0.5)
    last = np.where(rng.random(n) < rate, 100.0, rng.choice([0.0, 10.0, 33.0], n))
    return outcomes(first, last, again, per_cluster)


def bounds_of(arms: tuple[list[Outcome], list[Outcome]]) -> list[dict[str, Bounds]]:
    """By measure, with the bootstrap alone and as it is; both draw the same resamples."""
    found = []
    for floor in (lambda interval, *_, **__: interval, at_least_t):
        with (
            patch.object(summary, "at_least_t", floor),
            patch.object(paired_arms, "at_least_t", floor),
        ):
            one = summarise(arms[0], n_resamples=500)
            difference = compare(*arms, "first_score", n_resamples=500).difference
        each = {name: getattr(one, name) for name in FEW} | {PAIRED: difference}
        found.append({name: (x.low, x.high) for name, x in each.items()})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sims", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["one_rate", "paired", "scored", "few"])
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    quarter = args.sims // 4
    tables = (one_rate, args.sims), (paired, quarter), (scored, quarter), (few, quarter)
    for table, sims in tables:
        if args.only in (None, table.__name__):
            for line in table(sims, rng):
                print(line.rstrip(), flush=True)
            print()


if __name__ == "__main__":
    main()
