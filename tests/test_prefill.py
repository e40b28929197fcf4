"""Prefill: arms differ in the named factor alone; texts are matched; the family parts."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import fake_bench as world
import pytest
from runs import small

from steerback.protocols.base import Analysis, Direction
from steerback.protocols.prefill import (
    AFTER,
    OTHER,
    STEERED,
    UNSTEERED,
    Prefill,
    Prefix,
    Settings,
    with_others,
)
from steerback.records import Records
from steerback.run import run
from steerback.store import Store
from steerback.types import Attempt, Generation, Trial, Verdict

DRIFT = "The sea is deep. The boat is long."


@pytest.fixture
def bench(tmp_path: Path):
    made = world.World(tmp_path / "run")
    yield made
    made.store.close()


def prepared(bench: world.World, per_direction: int = 5):
    """ESR trials that all went off topic, each with a text of its own."""
    inputs = world.inputs()
    trials = [
        Trial("esr", "steered", "model", q, (), inputs.sampling, 100 * n + i, (d.add(),))
        for n, d in enumerate(inputs.directions)
        for i, q in enumerate(world.QUESTIONS[1:8])
    ]
    texts = [f"{DRIFT} It is number {n}. " for n in range(len(trials))]
    verdicts = [
        Verdict(t.key, world.JUDGE, (Attempt(0, len(s), float(n % 30)),), "ok")
        for n, (t, s) in enumerate(zip(trials, texts, strict=True))
    ]
    bench.store.add(
        (t, Generation(t.key, (1,), (2,), s, "eos")) for t, s in zip(trials, texts, strict=True)
    )
    bench.store.add_verdicts(verdicts)
    settings = Settings(per_direction=per_direction)
    found = Prefill().before(bench, inputs, settings)
    bench.store.put_artifact("found/prefill", {"settings": {}, "found": found})
    return replace(inputs, found={"prefill": found}), settings


def by_arm(trials: list[Trial]) -> dict[str, dict[int, Trial]]:
    arms: dict[str, dict[int, Trial]] = {}
    for t in trials:
        assert t.seed not in arms.setdefault(t.arm, {})
        arms[t.arm][t.seed] = t
    return arms


def test_each_arm_differs_from_its_reference_in_the_named_factor_alone(bench):
    inputs, settings = prepared(bench)
    arms = by_arm(Prefill().plan(inputs, settings))
    assert arms.keys() == {UNSTEERED, STEERED, AFTER, OTHER}
    directions = {d.id: d for d in inputs.directions}
    for found in inputs.found["prefill"]:
        trials = {arm: of[found["seed"]] for arm, of in arms.items()}
        free, live, after, other = (trials[a] for a in (UNSTEERED, STEERED, AFTER, OTHER))
        assert free.interventions == ()
        own = directions[found["direction"]]
        assert live == replace(free, arm=STEERED, interventions=(own.add(),))
        late = own.add(positions=f"from:{len(bench.encode(free.prefill))}")
        assert after == replace(free, arm=AFTER, interventions=(late,))
        assert other == replace(live, arm=OTHER, prefill=found["other"])
        assert other.prefill != live.prefill
    assert {len(of) for of in arms.values()} == {17 * 5}


def test_the_other_text_is_by_another_latent_that_has_nothing_to_do_with_the_question(bench):
    inputs, _ = prepared(bench)
    written = {p["text"]: p for p in inputs.found["prefill"]}
    for p in inputs.found["prefill"]:
        source = written[p["other"]]
        assert source["direction"] == p["other_direction"] != p["direction"]
        assert abs(source["score"] - p["score"]) <= 10
        assert p["same_question"] == (source["question"] == p["question"])


def prefix(direction: int, score: float, question: str = "q", words: int = 5) -> Prefix:
    return Prefix(
        question, " ".join(["w"] * words) + f" {direction}.", 1, f"sae:{direction}", 0, score
    )


def directions(*labels: str, skip: str = "") -> dict[str, Direction]:
    made = [Direction("sae", i, 1, "raw", label) for i, label in enumerate(labels)]
    made[-1] = replace(made[-1], skip=frozenset([skip]))
    return {d.id: d for d in made}


@pytest.mark.parametrize(
    ("others", "labels", "best"),
    [
        ([prefix(1, 12.0), prefix(2, 11.0)], "abc", 2),
        ([prefix(1, 11.0, "r"), prefix(2, 15.0)], "abc", 2),
        ([prefix(1, 11.0, words=9), prefix(2, 11.0, words=6)], "abc", 2),
        ([prefix(1, 10.0), prefix(2, 15.0)], "aab", 2),
        ([prefix(1, 30.0), prefix(2, 21.0)], "abc", None),
    ],
)
def test_the_nearest_text_is_taken(others, labels, best):
    [first, *_] = with_others([prefix(0, 10.0), *others], directions(*labels), gap=10)
    assert first.other_direction == ("" if best is None else f"sae:{best}")


def test_a_direction_that_has_to_do_with_the_question_never_stands_in():
    [first, _] = with_others(
        [prefix(0, 1.0), prefix(1, 1.0, "r")], directions("a", "b", skip="q"), 10
    )
    assert not first.other


def test_texts_are_shared_out():
    texts = [prefix(0, 1.0), prefix(0, 1.0), prefix(1, 1.0), prefix(2, 1.0)]
    found = with_others(texts, directions("a", "b", "c"), 10)
    assert {p.other_direction for p in found[:2]} == {"sae:1", "sae:2"}


def test_pairs_are_clustered_by_the_direction_that_wrote_the_text(bench):
    inputs, settings = prepared(bench)
    bench.judge(Prefill().plan(inputs, settings), {}, 0.6)
    analysis = Prefill().analyse(bench.records)
    assert [s.arm for s in analysis.summaries] == [UNSTEERED, STEERED, AFTER, OTHER]
    assert all(s.prefilled and math.isnan(s.chance_improvement.value) for s in analysis.summaries)
    compared = [c for _, c in analysis.comparisons if c.measure == "multi_attempt"]
    assert len(compared) == 4
    for c in compared:
        assert (c.clusters, c.unpaired, c.pairs, c.difference.value) == (17, (0, 0), 17 * 5, 0)


def test_before_it_ran_there_is_nothing_to_say(bench):
    assert Prefill().analyse(bench.records) == Analysis()


@pytest.mark.parametrize("organism", ["imitator", "resister"])
def test_the_family_parts(organism: str, tmp_path: Path):
    """Both notice off-topic text; the imitator does not once it is pushed, the resister does."""
    config = small(
        tmp_path / "run",
        organism,
        protocols=["esr", "prefill"],
        directions={"count": 8},
        calibration={"rounds": 4, "prompts_per_round": 4, "fresh": 8},
        sampling={"max_new_tokens": 64},
        settings={"esr": {"prompts_per_direction": 8}, "prefill": {"per_direction": 6}},
    )
    run(config)
    with Store.open(tmp_path / "run", mode="ro") as store:
        analysis = Prefill().analyse(Records(store))
    restarts = {s.arm: s.multi_attempt for s in analysis.summaries}
    compared = {t: c for t, c in analysis.comparisons if c.measure == "multi_attempt"}
    assert restarts[UNSTEERED].rate > 0.4
    if organism == "imitator":
        assert restarts[STEERED].rate < 0.1
        assert compared["steered, against unsteered"].difference.high < 0
    else:
        assert restarts[STEERED].low > 0.4
