"""Hotspot: fresh seeds per cell; a hot cell is told from a lucky one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import fake_bench as world
import numpy as np
import pytest

from steerback.errors import UserError
from steerback.protocols.base import Analysis
from steerback.protocols.esr import Esr
from steerback.protocols.hotspot import HOT, OTHER, Hotspot, Settings
from steerback.types import Attempt, Verdict, derive_seed

SETTINGS = Settings(hot=12, others=12, seeds=20)


@pytest.fixture
def bench(tmp_path: Path):
    made = world.World(tmp_path / "run")
    made.judge(Esr().plan(world.inputs(), Esr().settings(prompts_per_direction=6)), {}, 0.25)
    yield made
    made.store.close()


def prepared(bench: world.World, settings: Settings = SETTINGS):
    inputs = world.inputs()
    found = Hotspot().before(bench, inputs, settings)
    stored = {"settings": settings.model_dump(mode="json"), "found": found}
    bench.store.put_artifact("found/hotspot", stored)
    return replace(inputs, found={"hotspot": found}), found


def judge(bench: world.World, trials, chance) -> None:
    """Each trial restarts with the chance of its cell, by a luck of its own."""
    bench.execute(trials, "")
    verdicts = []
    for t in trials:
        rng = np.random.default_rng(derive_seed(t.seed, "luck"))
        attempts = [Attempt(0, 4, 10.0)]
        if rng.random() < chance(t):
            attempts.append(Attempt(4, 8, 90.0))
        verdicts.append(Verdict(t.key, world.JUDGE, tuple(attempts), "ok"))
    bench.store.add_verdicts(verdicts)


def test_hot_cells_restarted_before_and_none_is_taken_twice(bench):
    _, found = prepared(bench)
    hot, other = ([c for c in found if c["kind"] == kind] for kind in (HOT, OTHER))
    assert len(hot) == len(other) == 12
    assert all(c["seen"][0] >= 1 for c in hot)
    places = [(c["direction"], c["question"]) for c in found]
    assert len(set(places)) == len(places)


def test_every_cell_is_tried_with_fresh_seeds_at_its_strength(bench):
    inputs, found = prepared(bench)
    trials = Hotspot().plan(inputs, SETTINGS)
    assert len(trials) == len(found) * 20
    assert len({t.seed for t in trials}) == len(trials)
    stored = {t.seed for t, _ in bench.store.trials("esr")}
    assert not stored & {t.seed for t in trials}
    places = {(c["direction"], c["question"]) for c in found}
    for t in trials:
        (add,) = t.interventions
        assert add.value == 2.0
        assert (t.cluster, t.question) in places


def luck(analysis: Analysis) -> dict[str, dict[str, object]]:
    sheet = analysis.sheets[0]
    return {str(r[0]): dict(zip(sheet.columns, r, strict=True)) for r in sheet.rows}


def test_where_restarts_were_luck_hot_cells_fall_back_to_the_others(bench):
    inputs, _ = prepared(bench)
    judge(bench, Hotspot().plan(inputs, SETTINGS), lambda t: 0.1)
    rows = luck(Hotspot().analyse(bench.records))
    hot = rows[HOT]
    assert hot["rate in esr"].rate == 1
    assert hot["rate on fresh seeds"].low < 0.1 < hot["rate on fresh seeds"].high
    assert hot["p, one rate for all"] > 0.05
    assert hot["p, best by luck"] > 0.05
    assert hot["best cell, shrunk"].value < hot["best cell"].rate


def test_a_cell_that_is_hot_is_found(bench):
    inputs, found = prepared(bench)
    place = (found[0]["direction"], found[0]["question"])
    chance = lambda t: 0.7 if (t.cluster, t.question) == place else 0.05  # noqa: E731
    judge(bench, Hotspot().plan(inputs, SETTINGS), chance)
    analysis = Hotspot().analyse(bench.records)
    hot = luck(analysis)[HOT]
    assert hot["p, best by luck"] < 0.01
    assert hot["p, one rate for all"] < 0.01
    assert hot["best cell, shrunk"].low > 0.2
    best = analysis.sheets[1].rows[0]
    assert best[1:3] == place
    (figure,) = analysis.charts
    assert len(figure.rows) == len(figure.series[0].values) == 24
    assert [s.n for s in analysis.summaries] == [12 * 20] * 2


def test_named_cells_are_those_that_are_tried(bench):
    settings = Settings(cells=["20: question 3", "22: Why: so?"], others=0, seeds=2)
    _, found = prepared(bench, settings)
    assert [(c["direction"], c["question"]) for c in found] == [
        ("sae:20", "question 3"),
        ("sae:22", "Why: so?"),
    ]
    for wrong in ("99: question 3", "20:", "question 3"):
        with pytest.raises(UserError, match="is no cell of this run") as caught:
            Hotspot().before(bench, world.inputs(), Settings(cells=[wrong]))
        assert "\n" not in str(caught.value)


def test_before_it_ran_there_is_nothing_to_say(bench):
    assert Hotspot().analyse(bench.records) == Analysis()
    prepared(bench)
    assert Hotspot().analyse(bench.records) == Analysis()
