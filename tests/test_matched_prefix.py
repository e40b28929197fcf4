"""Matched prefix: arms differ in the prefix alone; what follows is judged by itself; shares by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import fake_bench as world
import numpy as np
import pytest

from steerback.judge.base import Request
from steerback.judge.rest import judge_rest
from steerback.protocols.base import Analysis
from steerback.protocols.matched_prefix import (
    ARMS,
    CORRECTIVE,
    NOTHING,
    ON_TOPIC,
    SILENT,
    WHOLE,
    MatchedPrefix,
    Settings,
    nearest_in_length,
    prefixes,
    share,
)
from steerback.records import Record
from steerback.stats import Outcome, outcome
from steerback.types import Attempt, Generation, Message, Sampling, Trial, Verdict

DRIFT = "The sea is deep. The boat is long. "
PHRASE = "Wait, that is not right. Let me start over."
ANSWER = " Knead the dough well. Bake the bread. "
PLAIN = "Take some flour. Add water and salt. Knead it for ten minutes. Let it rest. Bake it hot."
SETTINGS = Settings(per_direction=3, words=6)


def record(text: str, scores: tuple[float, ...], seed: int = 0, add: bool = True) -> Record:
    steering = (world.inputs().directions[seed % 17].add(),) if add else ()
    question = world.QUESTIONS[1 + seed % 20]
    name, arm = ("esr", "steered") if add else ("baseline", "unsteered")
    said = (Message("user", question),)
    trial = Trial(name, arm, "model", question, said, Sampling(), seed, steering)
    cuts = [0, text.find(PHRASE), len(text)] if len(scores) > 1 else [0, len(text)]
    attempts = tuple(Attempt(*s) for s in zip(cuts, cuts[1:], scores, strict=False))
    verdict = Verdict(trial.key, world.JUDGE, attempts, "ok")
    made = Generation(trial.key, (1,), (2,), text, "eos")
    return Record(trial, made, verdict, outcome(trial.key, trial.cluster, verdict, text))


def test_prefixes_of_an_episode():
    found = prefixes(
        record(DRIFT + PHRASE + ANSWER, (5.0, 90.0)), record(PLAIN, (99.0,), add=False), 6
    )
    assert found == {
        NOTHING: "",
        CORRECTIVE: f"{PHRASE} Knead the dough well.",
        SILENT: "Knead the dough well.",
        ON_TOPIC: "Take some flour. Add water and salt. Knead it for ten minutes.",
        WHOLE: f"{DRIFT}{PHRASE} Knead the dough well.",
    }


@pytest.mark.parametrize(
    ("text", "scores", "twin"),
    [
        (DRIFT, (5.0,), PLAIN),
        (DRIFT + PHRASE + ANSWER, (5.0, 40.0), PLAIN),
        (DRIFT + PHRASE + ANSWER, (5.0, 4.0), PLAIN),
        (DRIFT + PHRASE + " and no end", (5.0, 90.0), PLAIN),
        (DRIFT + PHRASE + ANSWER, (5.0, 90.0), "no end"),
    ],
)
def test_what_is_no_episode_gives_none(text, scores, twin):
    assert prefixes(record(text, scores), record(twin, (99.0,), add=False), 6) == {}
    assert prefixes(record(DRIFT + PHRASE + ANSWER, (5.0, 90.0)), None, 6) == {}


def test_the_nearest_length():
    lengths = [len(nearest_in_length(PLAIN, n).split()) for n in (1, 4, 5, 7, 9, 40)]
    assert lengths == [3, 3, 3, 7, 7, 18]


@pytest.fixture
def bench(tmp_path: Path):
    made = world.World(tmp_path / "run")
    yield made
    made.store.close()


def prepared(bench: world.World):
    records = [record(DRIFT + PHRASE + ANSWER, (5.0, 90.0), i) for i in range(17 * 5)]
    records += [record(PLAIN, (99.0,), i, add=False) for i in range(17 * 5)]
    bench.store.add([(r.trial, r.generation) for r in records])
    bench.store.add_verdicts([r.verdict for r in records])
    found = MatchedPrefix().before(bench, world.inputs(), SETTINGS)
    bench.store.put_artifact("found/matched_prefix", {"settings": {}, "found": found})
    return world.inputs(found={"matched_prefix": found})


def test_arms_differ_in_the_prefix_alone(bench):
    inputs = prepared(bench)
    planned = MatchedPrefix().plan(inputs, SETTINGS)
    arms = {arm: {t.seed: t for t in planned if t.arm == arm} for arm in ARMS}
    assert {len(of) for of in arms.values()} == {17 * 3}
    assert len(planned) == len(ARMS) * 17 * 3
    for found in inputs.found["matched_prefix"]:
        trials = [arms[arm][found["seed"]] for arm in ARMS]
        assert [t.prefill for t in trials] == [found["prefixes"][arm] for arm in ARMS]
        assert len({replace(t, arm="", prefill="") for t in trials}) == 1
        assert [i.kind for i in trials[0].interventions] == ["add"]
        assert trials[0].cluster == found["direction"]


def test_planted_qualities_are_recovered(bench):
    inputs = prepared(bench)
    planned = MatchedPrefix().plan(inputs, SETTINGS)
    bench.judge(planned, {}, 0.0)
    true = {NOTHING: 20.0, ON_TOPIC: 50.0, SILENT: 35.0, CORRECTIVE: 80.0, WHOLE: 80.0}
    rng = np.random.default_rng(0)
    scores = {t.key: true[t.arm] + rng.uniform(-9, 9) for t in MatchedPrefix().continued(planned)}
    rest = [Verdict(k, f"{world.JUDGE}/rest", (Attempt(0, 1, s),), "ok") for k, s in scores.items()]
    bench.store.add_verdicts(rest)
    analysis = MatchedPrefix().analyse(bench.records)
    found = {t: c for t, c in analysis.comparisons if c.measure == "score of what follows"}
    natural = found["corrective text, against on-topic text"]
    assert natural.ratio.low < 1.6 < natural.ratio.high
    assert natural.difference.low > 20
    assert natural.pairs == 17 * 3
    explained = dict(analysis.sheets[0].rows)
    half = explained["(on-topic text − nothing) / (corrective text − nothing)"]
    assert half.low < 0.5 < half.high
    assert bench.records.judge == world.JUDGE


def test_before_it_ran_or_without_episodes_there_is_nothing_to_say(bench):
    assert MatchedPrefix().analyse(bench.records) == Analysis()
    bench.store.put_artifact("found/matched_prefix", {"settings": {}, "found": []})
    analysis = MatchedPrefix().analyse(bench.records)
    assert not analysis.comparisons
    assert analysis.sheets[0].rows[0] == (CORRECTIVE, 0, None)


# --- what follows ----------------------------------------------------------------------------


class Judge:
    """Scores by length; a second attempt at each `|`."""

    name = "length"

    def __init__(self) -> None:
        self.asked: list[Request] = []

    def judge(self, requests):
        self.asked += requests
        return [self._verdict(r) for r in requests]

    def _verdict(self, r: Request) -> Verdict:
        cuts = [0, *(i for i, c in enumerate(r.response) if c == "|"), len(r.response)]
        attempts = [
            Attempt(a, b, None if r.response[a : a + 2] == "|?" else float(b - a))
            for a, b in pairwise(cuts)
        ]
        return Verdict(r.trial_key, "length", tuple(attempts), "ok")


@pytest.mark.parametrize(
    ("prefill", "text", "score"),
    [
        ("ab", "ab cdefg", 6.0),
        ("", "abc", 3.0),
        ("ab", "ab ", None),
        ("ab", "abc|def", (1 * 1 + 4 * 4) / 5),
        ("ab", "abc|?f", None),
    ],
)
def test_what_follows_is_judged_by_itself(prefill, text, score):
    trial = replace(record("x", (1.0,)).trial, prefill=prefill)
    judge = Judge()
    [verdict] = judge_rest(judge, [(trial, Generation(trial.key, (), (), text, "eos"))])
    assert verdict.judge == "length/rest"
    assert (verdict.status, verdict.scores) == (
        ("unscored", ()) if score is None else ("ok", (pytest.approx(score),))
    )
    assert all(r.response == text[len(prefill) :] for r in judge.asked)


def test_a_share_by_hand():
    def arm(scores):
        return [
            Outcome(str(i), f"d{i % 5}", s is None, 1, False, s, s, pair=str(i))
            for i, s in enumerate(scores)
        ]

    none, part, whole = [10.0] * 10, [30.0, 50.0] * 5, [90.0] * 9 + [None]
    found = share(arm(none), arm(part), arm(whole))
    assert found.value == pytest.approx((np.mean(part[:9]) - 10) / 80)
    assert found.n == 9
    assert share(arm(none), arm(part), arm(whole), above_floor=False).value == pytest.approx(
        np.mean(part[:9]) / 90
    )
    assert np.isnan(share([], [], []).value)
