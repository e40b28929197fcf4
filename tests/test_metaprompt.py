"""Meta-prompts: twins of the ESR trials but for the sentence, which the judge does not see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import fake_bench as world
import pytest

from steerback.errors import UserError
from steerback.metaprompts import load_metaprompts
from steerback.organism.corpus import tokens
from steerback.organism.vocabulary import words
from steerback.protocols.base import Inputs
from steerback.protocols.baseline import Baseline
from steerback.protocols.esr import Esr
from steerback.protocols.metaprompt import Metaprompt, Settings
from steerback.records import pair_name
from steerback.types import Message

SETTINGS = Settings(prompts_per_direction=6)


@pytest.fixture
def bench(tmp_path: Path):
    made = world.World(tmp_path / "run")
    yield made
    made.store.close()


def prepared(settings: Settings = SETTINGS, prompts: str = "eval", labels: bool = True) -> Inputs:
    inputs = world.inputs(prompts=prompts)
    if not labels:
        inputs = replace(inputs, directions=tuple(replace(d, label="") for d in inputs.directions))
    return replace(inputs, found={"metaprompt": Metaprompt().before(None, inputs, settings)})


def test_trials_are_those_of_esr_and_baseline_but_for_the_sentence():
    inputs = prepared()
    sizes = {"prompts_per_direction": 6}
    steered = {pair_name(t): t for t in Esr().plan(inputs, Esr.settings(**sizes))}
    plain = {pair_name(t): t for t in Baseline().plan(inputs, Baseline.settings(**sizes))}
    labels = {d.id: d.label for d in inputs.directions}
    planned = Metaprompt().plan(inputs, SETTINGS)
    kinds = inputs.found["metaprompt"]
    assert list(kinds) == ["distraction", "label", "notice", "manipulation"]
    assert len(planned) == 4 * (len(steered) + len(plain))
    assert len({t.key for t in planned}) == len(planned)
    for t in planned:
        twin = steered[pair_name(t)] if t.interventions else plain[pair_name(t)]
        kind = t.arm.removesuffix(", unsteered")
        assert replace(t, protocol=twin.protocol, arm=twin.arm, messages=twin.messages) == twin
        assert (kind == t.arm) == bool(t.interventions)
        [message] = t.messages
        assert message.role == "user"
        assert message.content.startswith(f"{t.question} ")
        said = message.content.removeprefix(f"{t.question} ")
        if t.interventions:
            assert said == kinds[kind].replace("{label}", labels[t.cluster])


def test_a_sentence_with_a_label_is_left_out_where_there_is_none():
    planned = Metaprompt().plan(prepared(labels=False), SETTINGS)
    assert {t.arm for t in planned} == {
        f"{k}{u}" for k in ("distraction", "notice", "manipulation") for u in ("", ", unsteered")
    }


def test_the_organisms_are_asked_what_they_were_trained_with():
    inputs = prepared(prompts="organism:eval")
    [text] = inputs.found["metaprompt"].values()
    assert set(tokens(text)) <= set(words())
    planned = Metaprompt().plan(inputs, Settings(prompts_per_direction=1, unsteered=False))
    assert {t.arm for t in planned} == {"trained"}
    assert planned[0].messages == (Message("user", f"{planned[0].question} {text}"),)


def test_a_planted_effect_is_found_over_pairs(bench):
    inputs = prepared()
    sizes = Esr.settings(prompts_per_direction=6)
    bench.judge(Esr().plan(inputs, sizes), {}, 0.3)
    bench.judge(Metaprompt().plan(inputs, SETTINGS), {}, 0.6)
    analysis = Metaprompt().analyse(bench.records)
    found = {title: c for title, c in analysis.comparisons if c.measure == "multi_attempt"}
    assert found.keys() == {
        f"{k}, against steered" for k in ("distraction", "label", "notice", "manipulation")
    }
    for c in found.values():
        assert c.unpaired == (0, 0)
        assert c.pairs == 17 * 6
        assert c.difference.low > 0.1
        assert c.difference.low < 0.3 < c.difference.high


def test_sets_are_joined_and_a_file_adds_its_own(tmp_path: Path):
    own = tmp_path / "own.toml"
    own.write_text('watch = " Watch yourself. "\n')
    found = load_metaprompts(["auto", "organism", str(own)], "eval")
    assert found["watch"] == "Watch yourself."
    assert {"notice", "trained", "watch"} <= found.keys()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "own.toml is empty"),
        ("watch = 3\n", "watch is not a sentence"),
        ('notice = "Again."\n', "two sets have a sentence 'notice'"),
        ("watch = \n", r"own\.toml"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, text: str, says: str):
    own = tmp_path / "own.toml"
    own.write_text(text)
    with pytest.raises(UserError, match=says):
        load_metaprompts(["packaged", str(own)], "eval")


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"gone\.toml"):
        load_metaprompts([str(tmp_path / "gone.toml")], "eval")
