"""Awareness: arms are twins; an answer counts by what was asked; habits cancel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import fake_bench as world
import numpy as np
import pytest

from steerback.errors import UserError
from steerback.protocols.awareness import (
    ARMS,
    READ,
    READ_STEERED,
    STEERED,
    UNSTEERED,
    Awareness,
    Settings,
    load_questions,
    says,
)
from steerback.protocols.base import Analysis
from steerback.protocols.esr import Esr
from steerback.types import Generation, Message, Trial, Verdict

SETTINGS = Settings(per_direction=3)


@pytest.fixture
def bench(tmp_path: Path):
    made = world.World(tmp_path / "run")
    yield made
    made.store.close()


def prepared(bench: world.World, answers: bool = True):
    inputs = world.inputs()
    if answers:
        bench.judge(Esr().plan(inputs, Esr.settings(prompts_per_direction=4)), {}, 0.0)
    found = Awareness().before(bench, inputs, SETTINGS)
    bench.store.put_artifact("found/awareness", {"settings": {}, "found": found})
    return replace(inputs, found={"awareness": found})


def by_arm(trials: list[Trial]) -> dict[str, dict[int, Trial]]:
    return {arm: {t.seed: t for t in trials if t.arm == arm} for arm in {t.arm for t in trials}}


def test_arms_differ_in_steering_or_in_what_was_said_before(bench):
    inputs = prepared(bench)
    planned = Awareness().plan(inputs, SETTINGS)
    arms = by_arm(planned)
    assert arms.keys() == set(ARMS)
    assert {len(of) for of in arms.values()} == {17 * 4 * 3}
    answers = {(t.cluster, t.question): g.text for t, g in bench.store.trials(protocol="esr")}
    for cell in inputs.found["awareness"]["cells"]:
        plain, steered, read, both = (
            arms[a][cell["seed"]] for a in (UNSTEERED, STEERED, READ, READ_STEERED)
        )
        assert steered == replace(plain, arm=STEERED, interventions=steered.interventions)
        assert both == replace(read, arm=READ_STEERED, interventions=steered.interventions)
        assert read == replace(plain, arm=READ, messages=read.messages)
        assert plain.interventions == ()
        assert steered.cluster == cell["direction"]
        assert plain.messages == (Message("user", plain.question),)
        question, answer, asked = read.messages
        assert answers[cell["direction"], question.content] == answer.content
        assert asked == plain.messages[0]


def test_without_an_answer_there_is_nothing_to_read(bench):
    planned = Awareness().plan(prepared(bench, answers=False), SETTINGS)
    assert {t.arm for t in planned} == {UNSTEERED, STEERED}


def answer(bench: world.World, trials: list[Trial], word) -> Analysis:
    """`word(trial, expected)` is what the model answers."""
    expected = {q["text"]: q["steered"] for q in load_questions("packaged").values()}
    said = [Generation(t.key, (1,), (2,), word(t, expected[t.question]), "eos") for t in trials]
    bench.store.add(zip(trials, said, strict=True))
    bench.store.add_verdicts([Verdict(t.key, world.JUDGE, (), "unscored") for t in trials])
    return Awareness().analyse(bench.records)


def test_a_habit_of_saying_yes_is_half_noticing_and_no_difference(bench):
    trials = Awareness().plan(prepared(bench), SETTINGS)
    analysis = answer(bench, trials, lambda t, _: "Yes, I do.")
    for _, c in analysis.comparisons:
        assert c.a == c.b == 0.5
        assert c.difference.value == 0
    rows = {(r[0], r[1]): r for r in analysis.sheets[0].rows}
    assert rows[STEERED, "unusual"][-1].rate == 1
    assert rows[STEERED, "as-always"][-1].rate == 0


def test_planted_noticing_is_found_over_pairs(bench):
    rng = np.random.default_rng(1)
    trials = Awareness().plan(prepared(bench), SETTINGS)

    def word(t: Trial, expected: str) -> str:
        if t.arm == STEERED and rng.random() < 0.1:
            return "Bread!"
        noticed = rng.random() < (0.8 if t.interventions else 0.3)
        return expected if noticed else {"yes": "no", "no": "yes"}[expected]

    analysis = answer(bench, trials, word)
    found = dict(analysis.comparisons)
    live = found["steered, against unsteered"]
    assert live.difference.low < 0.5 < live.difference.high
    assert live.difference.low > 0.3
    assert 0 < live.missing < 40
    assert live.unpaired == (0, 0)
    assert live.clusters == 17
    assert found["reads its answer, unsteered, against unsteered"].difference.low < 0
    assert live.measure == "says that it is steered"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes.", "yes"),
        ("Well, NO: not at all, yes?", "no"),
        ("Nothing. I know.", None),
        ("word " * 40 + "yes", None),
        ("", None),
    ],
)
def test_the_first_yes_or_no_counts(text, said):
    assert says(text) == said


def test_packaged_questions_are_balanced():
    expected = [q["steered"] for q in load_questions("packaged").values()]
    assert expected.count("yes") == expected.count("no")


@pytest.mark.parametrize(
    "text", ["", '[a]\ntext = "Is it?"\n', '[a]\ntext = "Is it?"\nsteered = "maybe"\n', "a = 3\n"]
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, text: str):
    own = tmp_path / "own.toml"
    own.write_text(text)
    with pytest.raises(UserError, match=r"own\.toml"):
        load_questions(str(own))


def test_before_it_ran_there_is_nothing_to_say(bench):
    assert Awareness().analyse(bench.records) == Analysis()
