"""Searches equal slow twins, find simulated thresholds, and never loop or mislead by silence."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from steerback.calibrate import Calibrator, PromptPlan, calibration_key
from steerback.errors import UserError
from steerback.search import (
    GRID,
    MAX_EMPTY,
    METHODS,
    Bisection,
    DoseResponse,
    Method,
    SearchSettings,
)
from steerback.types import Sampling

PRIOR = SearchSettings(mean=0.5, sd=0.3, upper=2.0)
BOTH: list[Method] = ["bisection", "dose-response"]
ROUNDS = st.lists(st.lists(st.floats(0, 100), min_size=1, max_size=6), min_size=1, max_size=10)


def brute_force_bisection(rounds: list[list[float]], target: float) -> tuple[float, float]:
    """Posterior median and sd by the textbook, point by point, without logarithms."""
    grid = [2.0 * i / (GRID - 1) for i in range(GRID)]
    mass = [math.exp(-0.5 * ((x - 0.5) / 0.3) ** 2) for x in grid]

    def median() -> int:
        half, total = math.fsum(mass) / 2, 0.0
        for i, m in enumerate(mass):
            total += m
            if total >= half:
                return i
        raise AssertionError

    for scores in rounds:
        at, s = median(), sum(scores) / len(scores) / 100
        y = 1 if s - target >= 0 else -1
        below = stats.beta(0.5 + 5 * s, 0.5 + 5 * (1 - s)).cdf(target)
        p = 1 - below if y == 1 else below
        if p < 0.5:
            y, p = -y, 1 - p
        for i in range(GRID):
            if i == at:
                mass[i] *= math.sqrt(p * (1 - p))
            else:
                mass[i] *= p if (i > at) == (y == 1) else 1 - p
    total = math.fsum(mass)
    mean = math.fsum(x * m for x, m in zip(grid, mass, strict=True)) / total
    var = math.fsum((x - mean) ** 2 * m for x, m in zip(grid, mass, strict=True)) / total
    return grid[median()], math.sqrt(var)


@settings(max_examples=8, deadline=None)
@given(rounds=ROUNDS)
def test_bisection_equals_the_textbook(rounds: list[list[float]]) -> None:
    search = Bisection(PRIOR)
    for scores in rounds:
        search.tell(scores)
    median, sd = brute_force_bisection(rounds, 0.30)
    # One grid point of slack: sums in another order may cross one half elsewhere.
    assert search.result().strength == pytest.approx(median, abs=2.0 / (GRID - 1) + 1e-9)
    assert search.result().sd == pytest.approx(sd, rel=1e-6)


def brute_force_dose_response(
    rounds: list[tuple[float, list[float]]],
) -> tuple[float, float, float]:
    """Threshold by its definition and posterior sd: each curve for itself."""
    curves, weights, edges = [], [], [2.0 * (i / 300) ** 2 for i in range(301)]
    for left, right in pairwise(edges):
        t = (left + right) / 2
        for width in DoseResponse.WIDTHS:
            for low in (0.3 * share for share in DoseResponse.LOWS):
                for high in (0.3 + 0.7 * share for share in DoseResponse.HIGHS):
                    slope = width * t
                    odds = (0.3 - low) / (high - 0.3)
                    curves.append((t, low, high, slope, t + slope * math.log(odds)))
                    weights.append(stats.norm.pdf(t, 0.5, 0.3) * (right - left))
    t, low, high, slope, centre = np.array(curves).T

    def mean_score(x: Any) -> Any:
        logistic = 0.5 * (1 + np.tanh((centre - x) / slope / 2))
        return np.clip(low + (high - low) * logistic, 0.02, 0.98)

    np.testing.assert_allclose(mean_score(t), 0.3)
    post = np.array(weights)
    for strength, scores in rounds:
        for s in scores:
            m = mean_score(strength)
            post = post * m ** (s / 100) * (1 - m) ** (1 - s / 100)
    post /= post.sum()
    fine = np.linspace(0, 2, 4001)
    predicted = np.array([post @ mean_score(x) for x in fine])
    mean = post @ t
    return float(np.interp(-0.3, -predicted, fine)), math.sqrt(post @ (t - mean) ** 2)


@pytest.mark.parametrize("seed", [1, 3, 17])
def test_dose_response_equals_each_curve_for_itself(seed: int) -> None:
    rng = np.random.default_rng(seed)
    search, told = DoseResponse(PRIOR), []
    for _ in range(seed % 10 + 1):
        scores = rng.uniform(0, 100, size=3).tolist()
        told.append((search.ask(), scores))
        search.tell(scores)
    threshold, sd = brute_force_dose_response(told)
    assert search.result().strength == pytest.approx(threshold, abs=1e-3)
    assert search.result().sd == pytest.approx(sd, rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(rounds=ROUNDS, method=st.sampled_from(BOTH), target=st.floats(1, 99))
def test_posterior_is_a_distribution_and_the_median_is_its_median(
    rounds: list[list[float]], method: Method, target: float
) -> None:
    search = METHODS[method](replace(PRIOR, method=method, target=target))
    for scores in rounds:
        search.tell(scores)
        grid, mass = search._posterior()
        assert mass.sum() == pytest.approx(1)
        assert (mass >= 0).all()
        asked = search.ask()
        assert 0 <= asked <= PRIOR.upper
        assert mass[grid < asked].sum() <= 0.5 + 1e-9
        assert mass[grid <= asked].sum() >= 0.5 - 1e-9
    assert 0 <= search.result().strength <= PRIOR.upper


@settings(max_examples=15, deadline=None)
@given(rounds=ROUNDS, method=st.sampled_from(BOTH), log_scale=st.integers(-8, 12))
def test_the_unit_of_strength_does_not_matter(
    rounds: list[list[float]], method: Method, log_scale: int
) -> None:
    scale = 2.0**log_scale
    one = METHODS[method](replace(PRIOR, method=method))
    other = METHODS[method](SearchSettings(0.5 * scale, 0.3 * scale, 2.0 * scale, method=method))
    for scores in rounds:
        assert other.ask() == pytest.approx(scale * one.ask(), abs=scale * 2.5e-4)
        one.tell(scores)
        other.tell(scores)
    assert other.result().strength == pytest.approx(scale * one.result().strength, rel=5e-3)


@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("threshold", [0.2, 0.5, 1.1])
def test_a_clean_step_is_found(method: Method, threshold: float) -> None:
    search = METHODS[method](replace(PRIOR, method=method, rounds=10))
    while not search.done:
        search.tell([90.0 if search.ask() < threshold else 2.0] * 5)
    estimate = search.result()
    assert estimate.strength == pytest.approx(threshold, abs=0.05)
    assert estimate.sd < 0.1
    assert len(search.steps) == 10


def simulated_share_within(method: Method, n: int = 40) -> float:
    """Share of simulated directions, bimodal at 20 or 85, whose mean score is within 8 of 30."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(n):
        centre, width = rng.uniform(0.2, 1.0), rng.uniform(0.06, 0.25)

        def share(x: float, c: float = centre, w: float = width) -> float:
            return 1 / (1 + math.exp((x - c) / (c * w)))

        search = METHODS[method](replace(PRIOR, method=method))
        while not search.done:
            high = rng.random(6) < share(search.ask())
            search.tell(np.clip(np.where(high, 85, 20) + rng.normal(0, 8, 6), 0, 100).tolist())
        hits += abs(20 + 65 * share(search.result().strength) - 30) <= 8
    return hits / n


@pytest.mark.parametrize("method", BOTH)
def test_bimodal_scores_are_calibrated(method: Method) -> None:
    assert simulated_share_within(method) >= 0.8


# Failures are told


@pytest.mark.parametrize("method", BOTH)
def test_a_round_without_scores_moves_nothing_and_ends(method: Method) -> None:
    search = METHODS[method](replace(PRIOR, method=method))
    before = search._posterior()[1]
    for _ in range(MAX_EMPTY):
        assert not search.done
        search.tell([None, None])
    np.testing.assert_array_equal(search._posterior()[1], before)
    assert search.done
    assert search.result().failure == f"no valid score in {MAX_EMPTY} rounds"
    with pytest.raises(ValueError, match="is done"):
        search.tell([50.0])


@pytest.mark.parametrize("method", BOTH)
def test_unscored_generations_are_left_out(method: Method) -> None:
    with_none, without = (METHODS[method](replace(PRIOR, method=method)) for _ in range(2))
    with_none.tell([None, 80.0, None, 20.0])
    without.tell([80.0, 20.0])
    assert with_none.result() == without.result()
    assert with_none.steps[0].scores == (None, 80.0, None, 20.0)


def test_an_empty_round_does_not_use_up_a_round() -> None:
    search = Bisection(replace(PRIOR, rounds=3))
    for scores in ([None], [50.0], [None], [50.0], [50.0]):
        assert not search.done
        search.tell(scores)
    assert search.done
    assert search.result().failure == ""


@pytest.mark.parametrize("bad", [-0.1, 100.1, math.nan, math.inf])
def test_impossible_scores_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 100"):
        Bisection(PRIOR).tell([50.0, bad])


@pytest.mark.parametrize("method", BOTH)
def test_a_target_outside_of_the_range_is_told(method: Method) -> None:
    wide = SearchSettings(mean=1.0, sd=50.0, upper=2.0, method=method)
    for score, words in (
        (95.0, "stay above the target"),
        (1.0, "below the target at the smallest"),
    ):
        search = METHODS[method](wide)
        while not search.done:
            search.tell([score] * 6)
        assert words in search.result().failure


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mean": math.nan}, "prior mean must be finite"),
        ({"sd": 0.0}, "prior sd must be above 0"),
        ({"upper": -1.0}, "upper must be above 0"),
        ({"target": 100.0}, "target must be between 0 and 100"),
        ({"rounds": 0}, "rounds must be 1 or more"),
        ({"method": "newton"}, "method must be 'bisection' or 'dose-response'"),
    ],
)
def test_bad_settings_are_one_line(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        replace(PRIOR, **change)


# Many directions


def drive(directions: list[str]) -> Calibrator:
    calibrator = Calibrator(directions, replace(PRIOR, rounds=4))
    thresholds = {"sae:1": 0.3, "sae:2": 0.8}
    while strengths := calibrator.ask():
        calibrator.tell(
            {
                d: [None] if d == "sae:3" else [90.0 if x < thresholds[d] else 5.0] * 3
                for d, x in strengths.items()
            }
        )
    return calibrator


def test_directions_advance_together_and_do_not_see_each_other() -> None:
    together = drive(["sae:1", "sae:2", "sae:3"])
    alone = drive(["sae:2"])
    assert together.steps("sae:2") == alone.steps("sae:2")
    assert set(together.verify()) == {"sae:1", "sae:2"}
    assert (
        json.loads(json.dumps(together.steps("sae:3")))
        == [{"strength": pytest.approx(0.519, abs=0.01), "scores": [None]}] * MAX_EMPTY
    )


def test_conclusions_say_what_was_reached() -> None:
    calibrator = drive(["sae:1", "sae:2", "sae:3"])
    good = calibrator.conclude("sae:1", [20.0, None, 50.0], "key")
    assert good.reason == ""
    found = good.calibration
    assert (found.key, found.achieved, found.n, found.reached) == ("key", 35.0, 2, True)
    assert found.strength == calibrator.verify()["sae:1"]
    missed = calibrator.conclude("sae:2", [90.0] * 20, "key")
    assert not missed.calibration.reached
    assert missed.reason == "fresh prompts score 90, more than 30 off the target"
    silent = calibrator.conclude("sae:2", [None], "key")
    assert (silent.calibration.achieved, silent.calibration.reached) == (None, False)
    assert silent.reason == "no valid score on fresh prompts"
    failed = calibrator.conclude("sae:3", [], "key")
    assert failed.reason == "no valid score in 3 rounds"


KEY: dict[str, Any] = {
    "direction": "sae:1",
    "layer": 1,
    "unit": "resid",
    "positions": "generated",
    "model": "m",
    "judge": "exact",
    "sampling": Sampling(),
    "prompts": "sha",
    "prompts_per_round": 5,
    "fresh": 20,
    "settings": PRIOR,
    "seed": 0,
}


def test_the_key_depends_on_everything() -> None:
    others: dict[str, Any] = {
        **{name: "x" for name, value in KEY.items() if isinstance(value, str)},
        **{name: 99 for name, value in KEY.items() if isinstance(value, int)},
        "sampling": Sampling(max_new_tokens=256),
        "settings": replace(PRIOR, target=40.0),
    }
    assert set(others) == set(KEY)
    keys = {calibration_key(**{**KEY, name: other}) for name, other in others.items()}
    assert len(keys | {calibration_key(**KEY)}) == len(KEY) + 1
    assert calibration_key(**KEY) == calibration_key(**KEY)


@pytest.mark.parametrize("n", [2, 3, 17, 38, 65])
def test_prompts_are_used_evenly_and_fresh_ones_stay_fresh(n: int) -> None:
    plan = PromptPlan(n, "sae:1", seed=5)
    rounds = [plan.round(r, 5) for r in range(10)]
    used = [p for draws in rounds for p, _ in draws]
    fresh = [p for p, _ in plan.fresh(20)]
    assert not set(used) & set(fresh)
    assert set(used) | set(fresh) <= set(range(n))
    counts = [used.count(p) for p in set(used)]
    assert max(counts) - min(counts) <= 1
    assert len(set(fresh)) == min(20, n // 2)
    seeds = [s for draws in [*rounds, plan.fresh(20)] for _, s in draws]
    assert len(set(seeds)) == len(seeds)


def test_plans_differ_by_direction_and_seed_and_repeat() -> None:
    draws = [PromptPlan(38, d, s).round(0, 5) for d, s in (("a", 0), ("b", 0), ("a", 1), ("a", 0))]
    assert draws[0] == draws[3]
    assert draws[0] != draws[1]
    assert draws[0] != draws[2]
    with pytest.raises(UserError, match=r"1 prompt.s. cannot give fresh ones"):
        PromptPlan(1, "a", 0)
