"""Every headline number of one arm, each with an interval that respects the clusters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

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
from steerback.stats.chance import ChanceAll, ChanceDirection, share_within
from steerback.stats.influence import at_least_t, of_chance, of_ratio
from steerback.stats.intervals import rate_from_sums
from steerback.stats.measures import MEASURES
from steerback.stats.mover import SQUARE_AND_ADD, few_events
from steerback.stats.outcomes import Outcome
from steerback.types import Rate

BOOTSTRAP = "cluster bootstrap"
CHANCE = (
    "chance_improvement",
    "chance_same_direction",
    "improvement_above_chance",
    "improvement_above_same_direction",
    "esr_above_chance",
)
"""Estimates that rest on first attempts being the model's own."""

PUBLISHED = (
    *("protocol", "arm", "model", "n", "clusters", "missing", "multi_attempt", "esr"),
    *("cond_improvement", "chance_improvement", "first_score", "degraded", "implicit_recovery"),
)


@dataclass(frozen=True)
class Summary:
    """The numbers of one arm. Rates are in [0, 1], scores in [0, 100]."""

    protocol: str
    arm: str
    model: str
    n: int
    """Trials with valid scores."""
    clusters: int
    missing: int
    multi_attempt: Rate
    esr: Rate
    cond_improvement: Rate
    """Of the restarted trials, those whose last attempt beats the first."""
    chance_improvement: Mean
    """How often a random other trial's first attempt would beat theirs (see `chance`)."""
    chance_same_direction: Mean
    """The same against other trials of the same direction only."""
    improvement_above_chance: Mean
    """cond_improvement - chance_improvement, paired within each resample."""
    improvement_above_same_direction: Mean
    esr_above_chance: Mean
    """multi_attempt x (cond_improvement - chance_improvement): share of all trials that restarted and
    improved beyond what a fresh first attempt would have given."""
    first_score: Mean
    score_delta: Mean
    """Last minus first, over restarted trials."""
    degraded: Rate
    """Over all trials, unscored ones too: it needs the text alone."""
    on_topic: Rate
    steered: Rate
    degraded_scored: Rate
    """With on_topic and steered the three-way outcome: these three sum to 1 over scored trials."""
    implicit_recovery: Rate
    implicit_decline: Rate
    """First third above the last by the same margin: the noise level of implicit_recovery."""
    prefilled: bool = False
    """First attempts begin with given texts, so that nothing is compared with them: chance levels, and
    what stands above them, are NaN."""

    def as_json(self) -> dict[str, Any]:
        """Names, counts, and every estimate as `{rate, low, high}`, those of the published shape first;
        unknown is null, never NaN."""
        values = {n: getattr(self, n) for n in (*PUBLISHED, *(f.name for f in fields(self)))}
        return {k: bounds(v) if isinstance(v, Rate | Mean) else v for k, v in values.items()}


def bounds(estimate: Rate | Mean) -> dict[str, float | None]:
    """Unknown and infinite numbers are None."""
    numbers = dict(zip(("rate", "low", "high"), _triple(estimate), strict=True))
    return {name: float(x) if math.isfinite(x) else None for name, x in numbers.items()}


def summarise(
    outcomes: Sequence[Outcome],
    *,
    protocol: str = "",
    arm: str = "",
    model: str = "",
    n_resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: Seed = 0,
) -> Summary:
    """Summarise one arm. Rates get the clustered Wilson interval, all else the cluster bootstrap.

    No trial is an answer too: every estimate is then NaN.
    """
    # Sums of floats depend on their order: sorted, the result is a function of the set of trials.
    outcomes = sorted(outcomes, key=lambda o: (o.cluster, o.trial_key))
    scored = [o for o in outcomes if not o.missing]
    missing = len(outcomes) - len(scored)
    rates = _rates(outcomes, level)
    means = _bootstrapped(scored, n_resamples, level, seed)
    _repair_few_events(rates, means)
    prefilled = any(o.prefilled for o in outcomes)
    if prefilled:
        nothing = Mean(math.nan, math.nan, math.nan, 0, 0, method="no chance level: prefilled")
        means |= dict.fromkeys(CHANCE, nothing)
    for name in ("first_score", "score_delta"):
        means[name] = replace(means[name], missing=missing)
    estimates: dict[str, Any] = {**rates, **means}
    return Summary(
        protocol=protocol,
        arm=arm,
        model=model,
        n=len(scored),
        clusters=len({o.cluster for o in scored}),
        missing=missing,
        prefilled=prefilled,
        **estimates,
    )


def _repair_few_events(rates: dict[str, Rate], means: dict[str, Mean]) -> None:
    """Where the bootstrap sees too few events, put the intervals of the parts together."""
    multi, improved, esr = rates["multi_attempt"], rates["cond_improvement"], "esr_above_chance"
    if not multi.k:
        # Improvement is unknown, but its product cannot exceed the bound of the restarts.
        low, high = -multi.high, multi.high
        means[esr] = replace(means[esr], low=low, high=high, method="bound of multi_attempt")
    elif few_events(improved):
        for above, chance in (
            ("improvement_above_chance", "chance_improvement"),
            ("improvement_above_same_direction", "chance_same_direction"),
        ):
            # Restarts alone in their direction have no chance level there: centre on the rest.
            centred = means[above].value + means[chance].value
            shift = centred - improved.rate
            part = centred, max(0.0, improved.low + shift), min(1.0, improved.high + shift)
            low, high = mover.difference(part, _triple(means[chance]))
            means[above] = replace(means[above], low=low, high=high, method=SQUARE_AND_ADD)
        low, high = mover.product(_triple(multi), _triple(means["improvement_above_chance"]))
        means[esr] = replace(means[esr], low=low, high=high, method=SQUARE_AND_ADD)


def _triple(estimate: Rate | Mean) -> mover.Estimate:
    value = estimate.rate if isinstance(estimate, Rate) else estimate.value
    return value, estimate.low, estimate.high


def _rates(outcomes: Sequence[Outcome], level: float) -> dict[str, Rate]:
    codes, n_clusters = cluster_codes([o.cluster for o in outcomes])
    rates = {}
    for name, measure in MEASURES.items():
        if measure.is_rate:
            sums, sizes = (sum_by_cluster(codes, n_clusters, x) for x in measure.columns(outcomes))
            missing = sum(not measure.known(o) for o in outcomes)
            rates[name] = rate_from_sums(sums, sizes, missing, level)
    return rates


def _bootstrapped(
    scored: Sequence[Outcome], n_resamples: int, level: float, seed: Seed
) -> dict[str, Mean]:
    """One set of resamples for all, so that differences are paired within each."""
    if not scored:
        return dict.fromkeys(_BOUNDS, Mean(math.nan, math.nan, math.nan, 0, 0, method=BOOTSTRAP))
    codes, n_clusters = cluster_codes([o.cluster for o in scored])
    arm = _Arm(scored, codes, n_clusters)
    value = arm.evaluate(np.ones((1, n_clusters)))[0]
    draws = bootstrap(arm.evaluate, n_clusters, n_resamples, seed)
    estimates = {}
    for column, (name, bounds) in enumerate(_BOUNDS.items()):
        n, clusters = arm.support(name)
        low, high = percentile_interval(draws[:, column], clusters, level)
        if clusters == 1:  # one cluster tells nothing about the others
            low, high = bounds
        # With few clusters the value can lie outside the central resamples.
        low, high = min(low, value[column]), max(high, value[column])
        low, high = at_least_t(
            (low, high),
            float(value[column]),
            arm.influence(name),
            codes,
            (n, clusters),
            level=level,
            bounds=bounds,
        )
        estimates[name] = Mean(float(value[column]), low, high, n, clusters, method=BOOTSTRAP)
    return estimates


_BOUNDS = {
    "chance_improvement": (0.0, 1.0),
    "chance_same_direction": (0.0, 1.0),
    "improvement_above_chance": (-1.0, 1.0),
    "improvement_above_same_direction": (-1.0, 1.0),
    "esr_above_chance": (-1.0, 1.0),
    "first_score": (0.0, 100.0),
    "score_delta": (-100.0, 100.0),
}


class _Arm:
    """Everything the bootstrap evaluates, as functions of cluster counts."""

    def __init__(self, scored: Sequence[Outcome], codes: Ints, n_clusters: int) -> None:
        names = ("multi_attempt", "cond_improvement", "first_score", "score_delta")
        self.columns = {name: MEASURES[name].columns(scored) for name in names}
        self.sums = {
            name: (
                sum_by_cluster(codes, n_clusters, top),
                sum_by_cluster(codes, n_clusters, bottom),
            )
            for name, (top, bottom) in self.columns.items()
        }
        first, multi = (self.columns[name][0] for name in ("first_score", "multi_attempt"))
        self.chance = ChanceAll.of(first, multi, codes, n_clusters)
        self.chance_direction = ChanceDirection.of(first, multi, codes, n_clusters)
        improved = self.columns["cond_improvement"][0]
        # The same-direction chance leaves out trials alone in their direction: so must its partner.
        alone = np.bincount(codes, minlength=n_clusters)[codes] < 2
        self.accompanied = sum_by_cluster(codes, n_clusters, np.where(alone, 0.0, improved))
        self._influences = self._all_influences(first, multi, improved, codes, alone)

    def evaluate(self, counts: Floats) -> Floats:
        """counts [b, clusters] -> [b, estimates], in the order of `_BOUNDS`."""
        multi, improved, first, delta = (
            ratio(counts @ top, counts @ bottom) for top, bottom in self.sums.values()
        )
        chance, same = self.chance(counts), self.chance_direction(counts)
        beside = ratio(counts @ self.accompanied, counts @ self.chance_direction.restarts)
        above = improved - chance
        esr = np.where(multi == 0, 0.0, multi * above)
        return np.stack([chance, same, above, beside - same, esr, first, delta], axis=1)

    def influence(self, name: str) -> Floats:
        """[n], trials in the order given; NaN where nothing restarted."""
        return self._influences[name]

    def _all_influences(
        self, first: Floats, multi: Floats, improved: Floats, codes: Ints, alone: Any
    ) -> dict[str, Floats]:
        both = of_chance(first, multi)
        with np.errstate(divide="ignore", invalid="ignore"):
            level = float(self.chance(np.ones((1, len(self.accompanied))))[0])
            chance = (both - level * (multi - multi.mean())) / multi.mean()
            accompanied = np.where(alone, 0.0, multi)
            within = share_within(first, codes) * accompanied
            same = of_ratio(within, accompanied)
            above = of_ratio(improved, multi)
            beside = of_ratio(np.where(alone, 0.0, improved), accompanied)
            delta = of_ratio(*self.columns["score_delta"])
        return {
            "chance_improvement": chance,
            "chance_same_direction": same,
            "improvement_above_chance": above - chance,
            "improvement_above_same_direction": beside - same,
            "esr_above_chance": improved - improved.mean() - both,
            "first_score": first - first.mean(),
            "score_delta": delta,
        }

    def support(self, name: str) -> tuple[int, int]:
        """Trials and clusters that an estimate rests on."""
        if "same_direction" in name:
            weights = self.chance_direction.restarts
        elif name in ("esr_above_chance", "first_score"):
            weights = self.sums["first_score"][1]
        else:
            weights = self.sums["cond_improvement"][1]
        return round(float(weights.sum())), int((weights > 0).sum())
