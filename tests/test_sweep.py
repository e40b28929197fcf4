"""Sweep: levels in each direction's own units, never twice; planted windows and ED50s are recovered."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import fake_bench as world
import numpy as np
import pytest
from pydantic import ValidationError

from steerback.protocols.base import Analysis, Direction, Inputs
from steerback.protocols.charts import Lines
from steerback.protocols.dosage import SDS, THRESHOLDS, Level
from steerback.protocols.esr import Esr
from steerback.protocols.sweep import Settings, Sweep, distinct
from steerback.records import pair_name
from steerback.stats import Mean
from steerback.stats.window import edges, window
from steerback.types import Attempt, Trial, Verdict

LEVELS = [0.25, 0.5, 1.0, 2.0, 4.0]
SETTINGS = Settings(prompts_per_direction=9, of_threshold=LEVELS, of_sd=[-3.0, 2.0])


@pytest.fixture
def bench(tmp_path: Path):
    made = world.World(tmp_path / "run")
    yield made
    made.store.close()


def prepared(settings: Settings = SETTINGS) -> Inputs:
    """Every direction has a threshold of its own."""
    own = world.inputs()
    directions = tuple(
        replace(d, strength=1.0 + n / 7, sd=0.1 + n / 50) for n, d in enumerate(own.directions)
    )
    inputs = replace(own, directions=directions)
    return replace(inputs, found={"sweep": Sweep().before(None, inputs, settings)})


def test_trials_of_a_cell_differ_in_strength_alone_and_one_is_that_of_esr():
    inputs = prepared()
    thresholds = {d.id: d for d in inputs.directions}
    esr = {pair_name(t): t for t in Esr().plan(inputs, Esr.settings(prompts_per_direction=9))}
    cells: dict[tuple[str, str, int], list[Trial]] = {}
    for t in Sweep().plan(inputs, SETTINGS):
        cells.setdefault((t.cluster, t.question, t.seed), []).append(t)
    assert len(cells) == len(esr) == 17 * 9
    for (direction, *_), trials in cells.items():
        d = thresholds[direction]
        values = [t.interventions[0].value for t in trials]
        wanted = [x * d.strength for x in LEVELS] + [d.strength - 3 * d.sd, d.strength + 2 * d.sd]
        assert values == pytest.approx([v for v in wanted if v > 0])
        bare = {replace(t, arm="", interventions=(d.add(),)) for t in trials}
        assert len(bare) == 1
        [twin] = [t for t in trials if t.arm == "1 thresholds"]
        assert replace(twin, protocol="esr", arm="steered") == esr[pair_name(twin)]


def direction(strength: float, sd: float) -> Direction:
    return Direction("sae", 1, 1, "raw", "", strength, sd)


@pytest.mark.parametrize(
    ("strength", "sd", "kept"),
    [
        (1.0, 0.1, ["1 thresholds", "1.5 thresholds", "-5 sd", "-1 sd"]),
        (1.0, 0.5, ["1 thresholds", "1.5 thresholds", "-1 sd"]),
        (1.0, 0.2, ["1 thresholds", "1.5 thresholds", "-1 sd"]),
    ],
)
def test_levels_that_add_nothing_or_coincide_are_left_out(strength, sd, kept):
    levels = [Level(1.0, THRESHOLDS), Level(1.5, THRESHOLDS), Level(-5.0, SDS), Level(-1.0, SDS)]
    levels += [Level(5.0, SDS)] if sd == 0.1 else []
    assert [level.arm for level, _ in distinct(direction(strength, sd), levels)] == kept


@pytest.mark.parametrize(
    "levels",
    [
        {"of_threshold": [1.0, 1.0]},
        {"of_threshold": [0.0, 1.0]},
        {"of_threshold": [1.0], "of_sd": [0.0]},
        {"of_threshold": [1.0]},
        {"of_threshold": [], "of_sd": [-1.0, -1.0]},
    ],
)
def test_levels_that_make_no_sweep_are_refused(levels):
    with pytest.raises(ValidationError):
        Settings(**levels)


# --- analysis --------------------------------------------------------------------------------


def judge(bench: world.World, inputs: Inputs, settings: Settings = SETTINGS) -> Analysis:
    """In thresholds: scores fall from 90 to 10 between 0.5 and 2; restarts are likely at 1 and 2."""
    trials = Sweep().plan(inputs, settings)
    bench.execute(trials, "")
    rng = np.random.default_rng(3)
    own = {d.id: d.strength for d in inputs.directions}
    verdicts = []
    for t in trials:
        x = t.interventions[0].value / own[t.cluster]
        first = float(np.interp(x, [0.5, 2.0], [90.0, 10.0]))
        again = rng.random() < {1.0: 0.6, 2.0: 0.6}.get(round(x, 9), 0.02)
        attempts = [Attempt(0, 4, first), *([Attempt(4, 8, 95.0)] if again else [])]
        verdicts.append(Verdict(t.key, world.JUDGE, tuple(attempts), "ok"))
    bench.store.add_verdicts(verdicts)
    stored = {"settings": settings.model_dump(mode="json"), "found": inputs.found["sweep"]}
    bench.store.put_artifact("found/sweep", stored)
    return Sweep().analyse(bench.records)


def test_planted_window_and_ed50_are_recovered(bench):
    analysis = judge(bench, prepared())
    windows, sds, doses = analysis.sheets
    rows = dict(windows.rows)
    assert windows.title.endswith(THRESHOLDS)
    assert sds.title.endswith(SDS)
    start, end = rows["ESR: at least half of that from"], rows["ESR: at least half of that up to"]
    assert 0.5 < start.low <= start.value <= start.high < 1.0
    assert 2.0 < end.low <= end.value <= end.high < 4.0
    half = rows["first score falls to 50: there is something to come back from"]
    assert half.value == pytest.approx(1.25, abs=0.01)
    assert [r[0] for r in doses.rows] == sorted(r[0] for r in doses.rows)
    for row in doses.rows:
        threshold, ed50 = row[3], row[5]
        assert isinstance(ed50, Mean)
        assert ed50.value == pytest.approx(1.25 * threshold, rel=0.02)


def test_the_charts_have_a_band_at_each_level_and_comparisons_are_paired(bench):
    analysis = judge(bench, prepared())
    chart, other = analysis.charts
    assert isinstance(chart, Lines)
    assert chart.x == tuple(LEVELS)
    assert other.x == (-3.0, 2.0)
    assert all(len(s.values) == len(chart.x) for _, series in chart.panels for s in series)
    assert len(analysis.comparisons) == 2 * 6
    for title, c in analysis.comparisons:
        assert title.endswith("against 1 thresholds")
        assert c.pairs == 17 * 9
        assert c.unpaired == (0, 0)


def test_before_it_ran_there_is_nothing_to_say(bench):
    assert Sweep().analyse(bench.records) == Analysis()


# --- window ----------------------------------------------------------------------------------


def test_edges_by_hand():
    doses = np.array([1.0, 2.0, 3.0, 5.0])
    rates = np.array([[0.0, 0.4, 0.8, 0.0], [0.8, 0.2, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    found = edges(doses, rates)
    assert found[0].tolist() == pytest.approx([3.0, 2.0, 4.0])
    assert found[1].tolist() == pytest.approx([1.0, -math.inf, 1 + 0.4 / 0.6])
    assert np.isnan(found[2]).all()


def test_edges_agree_with_a_fine_grid():
    rng = np.random.default_rng(0)
    doses = np.cumsum(rng.uniform(0.1, 1, 7))
    for row in rng.random((65, 7)):
        grid = np.union1d(np.linspace(doses[0], doses[-1], 20001), doses)
        fine = np.interp(grid, doses, row)
        high = grid[fine >= row.max() / 2]
        _, start, end = edges(doses, row[None])[0]
        assert high[0] == pytest.approx(max(start, doses[0]), abs=1e-3)
        assert high[-1] == pytest.approx(min(end, doses[-1]), abs=1e-3)


def test_a_window_needs_doses_and_events():
    assert window([1, 2], [False, False], ["a", "b"]) is None
    found = window([1.0, 2.0, 3.0] * 3, [False, True, False] * 3, list("aaabbbccc"))
    assert found is not None
    assert (found.start.value, found.peak.value, found.end.value) == (1.5, 2.0, 2.5)
    assert all(a <= b for a, b in pairwise([found.start.low, found.start.value, found.start.high]))
