"""Prefill ablation: texts are off topic and end before a restart; planted effects are recovered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import fake_bench as world
import numpy as np
import pytest

from steerback.events import compare_event, either, explicit, silent
from steerback.protocols.base import Analysis
from steerback.protocols.prefill_ablation import FREE, PrefillAblation, Settings, off_topic
from steerback.records import Record
from steerback.stats import Outcome, outcome
from steerback.types import Attempt, Generation, Intervention, Message, Sampling, Trial, Verdict

DRIFT = "The sea is deep. The boat is long. "
BACK = "Wait, wrong topic. Bread needs flour."


def record(text: str, *attempts: tuple[int, int, float], seed: int = 0) -> Record:
    add = Intervention("add", "sae", 20 + seed % 17, 2.0, 1)
    trial = Trial(
        "esr",
        "steered",
        "m",
        "question 3",
        (Message("user", "question 3"),),
        Sampling(),
        seed,
        (add,),
    )
    verdict = Verdict(trial.key, world.JUDGE, tuple(Attempt(*a) for a in attempts), "ok")
    made = Generation(trial.key, (1,), (2,), text, "eos")
    return Record(trial, made, verdict, outcome(trial.key, trial.cluster, verdict, text))


def test_the_text_is_the_first_attempt_in_whole_sentences():
    n = len(DRIFT)
    restarted = record(DRIFT + BACK, (0, n, 10.0), (n, n + len(BACK), 90.0))
    assert off_topic(restarted, Settings()) == "The sea is deep. The boat is long."
    assert off_topic(restarted, Settings(words=7)) == "The sea is deep."
    single = record(DRIFT + "And so", (0, n + 6, 30.0))
    assert off_topic(single, Settings()) == "The sea is deep. The boat is long."


@pytest.mark.parametrize(
    ("text", "score"),
    [(DRIFT, 31.0), ("no sentence ends here", 0.0), ("", 0.0), ("dog " * 9 + ".", 0.0)],
)
def test_what_is_on_topic_too_short_or_degraded_is_left_out(text, score):
    assert off_topic(record(text, (0, len(text), score)), Settings()) == ""


def test_the_text_is_long_enough_and_never_reaches_the_restart():
    n = len(DRIFT)
    for words in range(4, 12):
        found = off_topic(record(DRIFT + BACK, (0, n, 0.0), (n, n + 9, 9.0)), Settings(words=words))
        assert DRIFT.startswith(found)
        assert len(found.split()) <= words


@pytest.fixture
def bench(tmp_path: Path):
    made = world.World(tmp_path / "run")
    yield made
    made.store.close()


def prepared(bench: world.World, count: int = 340):
    """ESR trials that all went off topic, and what the needed protocols found."""
    records = [record(DRIFT, (0, len(DRIFT), 0.0), seed=i) for i in range(count)]
    bench.store.add([(r.trial, r.generation) for r in records])
    bench.store.add_verdicts([r.verdict for r in records])
    found = {"detectors": {"chosen": [world.DETECTOR]}, "matching": {"sets": [[40], [41], [42]]}}
    inputs = world.inputs(found=found)
    finding = PrefillAblation().before(bench, inputs, Settings())
    bench.store.put_artifact("found/prefill_ablation", {"settings": {}, "found": finding})
    return replace(inputs, found={**found, "prefill_ablation": finding})


def test_arms_differ_in_the_clamps_and_nothing_is_added(bench):
    inputs = prepared(bench)
    planned = PrefillAblation().plan(inputs, Settings())
    arms = {t.arm: [u for u in planned if u.arm == t.arm] for t in planned}
    clamps = {FREE: [], "detectors": [7]} | {f"random set {n}": [39 + n] for n in (1, 2, 3)}
    assert arms.keys() == clamps.keys()
    for arm, trials in arms.items():
        assert [replace(t, arm="", interventions=()) for t in trials] == [
            replace(t, arm="") for t in arms[FREE]
        ]
        assert all(t.prefill == DRIFT.strip() for t in trials)
        for t in trials:
            assert t.steered_by is None
            assert [(i.kind, i.index, i.value) for i in t.interventions] == [
                ("clamp", k, 0.0) for k in clamps[arm]
            ]
    assert len({t.seed for t in arms[FREE]}) == len(arms[FREE]) == 17 * 20


def test_no_direction_gives_more_than_its_share(bench):
    prepared(bench)
    found = PrefillAblation().before(bench, world.inputs(), Settings(per_direction=3))
    assert len(found) == 17 * 3
    assert len({text["direction"] for text in found}) == 17


def test_a_planted_effect_is_recovered_and_clustered_by_direction(bench):
    inputs = prepared(bench)
    bench.judge(PrefillAblation().plan(inputs, Settings()), {world.DETECTOR: 0.2}, 0.7)
    analysis = PrefillAblation().analyse(bench.records)
    compared = {title: c for title, c in analysis.comparisons if c.measure == "explicit recovery"}
    for title in ("detectors, against not clamped", "specific: detectors, against random sets"):
        assert compared[title].difference.low < -0.5 < compared[title].difference.high < -0.3
        assert compared[title].clusters == 17
    assert compared["random sets together, against not clamped"].difference.value == 0
    assert [s.arm for s in analysis.summaries][:2] == [FREE, "detectors"]
    assert all(s.clusters == 17 for s in analysis.summaries)


def test_before_it_ran_there_is_nothing_to_say(bench):
    assert PrefillAblation().analyse(bench.records) == Analysis()


# --- events ----------------------------------------------------------------------------------


def single(thirds=None, **changes) -> Outcome:
    return Outcome("k", "c", False, 1, False, 10.0, 10.0, thirds, **changes)


RESTARTED = Outcome("k", "c", False, 2, False, 10.0, 90.0)
WORSE = Outcome("k", "c", False, 2, False, 10.0, 5.0)
UNSCORED = Outcome("k", "c", True, 1, False)


@pytest.mark.parametrize(
    ("what", "said", "unsaid", "any_"),
    [
        (RESTARTED, True, False, True),
        (WORSE, False, False, False),
        (single((10.0, 90.0)), False, True, True),
        (single((90.0, 10.0)), False, False, False),
        (single(), False, None, None),
        (UNSCORED, None, None, None),
    ],
)
def test_events(what, said, unsaid, any_):
    assert (explicit(what), silent(what), either(what)) == (said, unsaid, any_)


def test_compare_event_counts_by_hand():
    rng = np.random.default_rng(0)
    arms = []
    for arm in "ab":
        thirds = [(0.0, 90.0) if rng.random() < 0.5 else (0.0, 0.0) for _ in range(65)]
        thirds[3] = None
        arms.append([single(t, pair=str(i)) for i, t in enumerate(thirds)])
        arms[-1] = [
            replace(o, trial_key=arm + o.pair, cluster=str(i % 5)) for i, o in enumerate(arms[-1])
        ]
    found = compare_event(arms[0], arms[1], silent, "silent recovery")
    share = [np.mean([o.implicit for o in arm if o.implicit is not None]) for arm in arms]
    assert (found.a, found.b) == pytest.approx(tuple(share))
    assert (found.measure, found.pairs, found.missing) == ("silent recovery", 64, 1)
