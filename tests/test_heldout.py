"""Held out: the inner protocols' own plans on other questions; planted effects are said to replicate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import fake_bench as world
import numpy as np
import pytest
from pydantic import ValidationError
from runs import small

from steerback.errors import UserError
from steerback.protocols.base import Analysis
from steerback.protocols.baseline import Baseline
from steerback.protocols.esr import Esr
from steerback.protocols.heldout import Heldout, Settings
from steerback.protocols.metaprompt import Metaprompt
from steerback.protocols.prefill import Prefill
from steerback.protocols.prefill import Settings as PrefillSettings
from steerback.records import Records, pair_name
from steerback.replication import FAILS, LIKELY, OPEN, REPLICATES, REVERSED, difference, verdict
from steerback.run import run
from steerback.stats import Comparison, Mean, Outcome
from steerback.store import Store
from steerback.types import Trial


@pytest.fixture
def bench(tmp_path: Path):
    made = world.World(tmp_path / "run")
    yield made
    made.store.close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    other = tmp_path / "other.txt"
    other.write_text("\n".join(f"question {i}" for i in range(200, 217)))
    return Settings(protocols=["baseline", "esr", "metaprompt"], questions=str(other))


def prepared(bench: world.World, settings: Settings):
    inputs = world.inputs()
    found = Heldout().before(bench, inputs, settings)
    stored = {"settings": settings.model_dump(mode="json"), "found": found}
    bench.store.put_artifact("found/heldout", stored)
    return replace(inputs, found={"heldout": found})


def bare(trial: Trial) -> Trial:
    """The trial without what a sample of questions changes."""
    return replace(trial, protocol="", question="", messages=(), seed=0)


def test_trials_are_the_inner_plans_on_other_questions_and_nothing_else(bench, settings):
    inputs = prepared(bench, settings)
    planned = Heldout().plan(inputs, settings)
    size = Esr.settings(prompts_per_direction=4)
    own = [*Baseline().plan(inputs, size), *Esr().plan(inputs, size)]
    fresh = [t for t in planned if not t.arm.startswith("metaprompt")]
    named = [replace(t, arm=f"{t.protocol}: {t.arm}") for t in own]
    assert sorted(map(repr, map(bare, fresh))) == sorted(map(repr, map(bare, named)))
    asked = {t.question for t in planned}
    assert asked == {f"question {i}" for i in range(201, 217)}, "the first has to do with them all"
    assert {t.protocol for t in planned} == {"heldout"}
    twins = {pair_name(t): t for t in planned if t.arm == "esr: steered"}
    for t in planned:
        if t.arm.startswith("metaprompt") and t.interventions:
            twin = twins.pop(pair_name(t), None)
            assert twin is None or replace(t, arm=twin.arm, messages=twin.messages) == twin


def test_a_protocol_that_looks_first_sees_the_held_out_trials_alone(bench, settings):
    settings = settings.model_copy(update={"protocols": ["prefill"]})
    bench.judge(Esr().plan(world.inputs(), Esr.settings(prompts_per_direction=4)), {}, 0.0)
    inputs = prepared(bench, settings)
    inner = inputs.found["heldout"]["inner"]
    assert list(inner) == ["esr", "prefill"]
    assert inner["prefill"]["found"] == []
    assert inner["prefill"]["settings"] == PrefillSettings().model_dump(mode="json")
    assert {t.arm for t in Heldout().plan(inputs, settings)} == {"esr: steered"}


def test_a_planted_effect_replicates_and_a_reversed_one_does_not(bench, settings):
    inputs = world.inputs()
    size = Esr.settings(prompts_per_direction=4)
    found = Metaprompt().before(None, inputs, Metaprompt.settings())
    first = replace(inputs, found={"metaprompt": found})
    bench.judge(Esr().plan(inputs, size), {}, 0.2)
    bench.judge(Metaprompt().plan(first, Metaprompt.settings(prompts_per_direction=4)), {}, 0.7)
    fresh = Heldout().plan(prepared(bench, settings), settings)
    bench.judge([t for t in fresh if "esr" in t.arm], {}, 0.4)
    bench.judge([t for t in fresh if "notice" in t.arm], {}, 0.9)
    bench.judge([t for t in fresh if "label" in t.arm], {}, 0.1)
    analysis = Heldout().analyse(bench.records)
    said = {(r[1], r[2]): r[-1] for r in analysis.sheets[0].rows}
    assert said["notice, against steered", "multi_attempt"] == REPLICATES
    assert said["label, against steered", "multi_attempt"] == REVERSED
    gaps = {r[1]: r[4] for r in analysis.sheets[1].rows if r[0] == "esr"}
    assert gaps["steered"].low < 0.2 < gaps["steered"].high
    assert {s.arm for s in analysis.summaries} >= {"esr: steered", "metaprompt: notice"}


def test_before_it_ran_there_is_nothing_to_say(bench):
    assert Heldout().analyse(bench.records) == Analysis()


def test_questions_without_a_packaged_counterpart_must_be_named(bench):
    with pytest.raises(UserError, match=r"no packaged set belongs to the questions 'own'"):
        Heldout().before(bench, world.inputs(), Settings())
    with pytest.raises(ValidationError):
        Settings(protocols=["esr", "heldout"])


def test_it_runs_on_the_organism_and_resumes(tmp_path: Path):
    amount = {"prompts_per_direction": 3}
    config = small(
        tmp_path / "run",
        protocols=["esr", "heldout"],
        settings={"esr": amount, "heldout": {"protocols": ["esr", "prefill"]}},
    )
    run(config)
    with Store.open(tmp_path / "run", mode="ro") as store:
        before = store.content_digest()
        analysis = Heldout().analyse(Records(store))
        asked = {t.question for t, _ in store.trials(protocol="heldout")}
        assert asked.isdisjoint(t.question for t, _ in store.trials(protocol="esr"))
    assert {s.arm for s in analysis.summaries} >= {"esr: steered", "prefill: unsteered"}
    assert Prefill.name not in {s.protocol for s in analysis.summaries}
    run(config)
    with Store.open(tmp_path / "run", mode="ro") as store:
        assert store.content_digest() == before


# --- replication -----------------------------------------------------------------------------


def found(value: float, half: float) -> Comparison:
    mean = Mean(value, value - half, value + half, 9, 9)
    return Comparison("esr", 0, 0, mean, mean, 0.5, "two-sided", 9, 9, 0, (0, 0))


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (found(0.2, 0.1), found(0.1, 0.05), REPLICATES),
        (found(-0.2, 0.1), found(-0.1, 0.05), REPLICATES),
        (found(0.2, 0.1), found(0.1, 0.2), LIKELY),
        (found(0.2, 0.1), found(-0.1, 0.2), FAILS),
        (found(0.2, 0.1), found(-0.1, 0.05), REVERSED),
        (found(0.2, 0.3), found(0.2, 0.1), OPEN),
    ],
)
def test_verdicts(first, second, said):
    assert verdict(first, second) == said


def outcomes(n: int, rate: float, seed: int) -> list[Outcome]:
    """Directions differ much, by the same luck in every sample."""
    base = np.random.default_rng(0).uniform(-0.2, 0.2, 17)
    rng = np.random.default_rng(seed)
    return [
        Outcome(
            str(i), f"d{i % 17}", False, 1 + (rng.random() < rate + base[i % 17]), False, 1.0, 9.0
        )
        for i in range(n)
    ]


def test_a_difference_of_samples_is_that_of_their_rates_and_shares_directions():
    a, b = outcomes(340, 0.3, 1), outcomes(680, 0.6, 2)
    gap = difference(a, b, "multi_attempt")
    rates = [np.mean([o.multi for o in arm]) for arm in (a, b)]
    assert gap.value == pytest.approx(rates[1] - rates[0])
    assert gap.low < 0.3 < gap.high
    apart = difference(a, [replace(o, cluster=f"other {o.cluster}") for o in b], "multi_attempt")
    assert gap.high - gap.low < apart.high - apart.low
    assert np.isnan(difference(a, [], "esr").value)
