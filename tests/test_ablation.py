"""Ablation: paired by construction, its control matched, planted effects recovered."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import fake_bench as world
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import small

from steerback.errors import UserError
from steerback.matching import NEAREST, Activity, matched_sets
from steerback.organism.corpus import read_data, topics
from steerback.protocols.ablation import Ablation, Settings
from steerback.protocols.base import Analysis, Inputs
from steerback.protocols.detectors import Detectors
from steerback.protocols.detectors import Settings as Search
from steerback.protocols.esr import Esr
from steerback.protocols.matching import Matching
from steerback.protocols.matching import Settings as Match
from steerback.records import Records
from steerback.run import run
from steerback.standardise import difference_at_equal_first_score
from steerback.stats import Outcome, compare, points
from steerback.store import Store
from steerback.types import Generation, Trial

SETTINGS = Settings(prompts_per_direction=20, heldout_prompts_per_direction=4, leave_one_out=1)
MATCHED = Match(neighbours=1)


def prepared(bench: world.World, detectors: list[int], matched: Match = MATCHED) -> Inputs:
    """Everything up to the plan of the ablation; `detectors` replace those that were found."""
    inputs = world.inputs()
    found = Detectors().before(bench, inputs, Search(derangements=3))
    inputs = replace(inputs, found={"detectors": {**found, "chosen": detectors}})
    bench.judge(Esr().plan(inputs, Esr().settings(prompts_per_direction=20)), {}, 0.6)
    for protocol, settings in ((Matching(), matched), (Ablation(), SETTINGS)):
        finding = protocol.before(bench, inputs, settings)
        inputs = replace(inputs, found={**inputs.found, protocol.name: finding})
        stored = {"settings": settings.model_dump(mode="json"), "found": finding}
        bench.store.put_artifact(f"found/{protocol.name}", stored)
    return inputs


class World(world.World):
    """One of which esr has as many trials as these tests replay."""

    def settings(self, protocol: str) -> dict[str, object]:
        return {"prompts_per_direction": 20} if protocol == "esr" else {}


@pytest.fixture
def bench(tmp_path: Path):
    made = World(tmp_path / "run")
    yield made
    made.store.close()


def bare(trial: Trial) -> Trial:
    """The trial without what an arm may change."""
    adds = tuple(i for i in trial.interventions if i.kind == "add")
    return replace(trial, protocol="", arm="", interventions=adds)


def by_arm(trials: list[Trial]) -> dict[str, list[Trial]]:
    arms = defaultdict(list)
    for t in trials:
        arms[t.arm].append(t)
    return arms


def test_arms_differ_in_nothing_but_the_clamps(bench):
    inputs = prepared(bench, [world.DETECTOR, world.TRACKER])
    arms = by_arm(Ablation().plan(inputs, SETTINGS))
    sets = inputs.found["matching"]["sets"]
    wanted = {"detectors": [7, 11], "without 7": [11]}
    wanted |= {f"random set {n}": one for n, one in enumerate(sets, 1)}
    fresh = {"steered, held out": []}
    fresh |= {f"{a}, held out": ks for a, ks in wanted.items() if not a.startswith("without")}
    quiet = {"unsteered": []}
    quiet |= {f"{a}, unsteered": k for a, k in wanted.items() if not a.startswith("without")}
    assert arms.keys() == wanted.keys() | fresh.keys() | quiet.keys()
    alone = {arm: arms.pop(arm) for arm in quiet}
    for arm, trials in alone.items():
        assert len(trials) == 17 * 2
        for t, own in zip(trials, alone["unsteered"], strict=True):
            assert (t.question, t.seed) == (own.question, own.seed)
            assert [*t.interventions] == world.clamped(t)  # nothing is added
            assert [i.index for i in t.interventions] == quiet[arm]
            assert all((i.value, i.layer, i.source) == (0.0, 1, "sae") for i in t.interventions)
    assert {t.seed for t in alone["unsteered"]} < {t.seed for t in arms["detectors"]}
    replayed = Esr().plan(inputs, Esr().settings(prompts_per_direction=20))
    heldout = arms["steered, held out"]
    for arm, trials in arms.items():
        twins = heldout if arm in fresh else replayed
        assert [bare(t) for t in trials] == [bare(t) for t in twins]
        for t in trials:
            clamps = world.clamped(t)
            assert [i.index for i in clamps] == {**wanted, **fresh}[arm]
            assert all((i.value, i.layer, i.source) == (0.0, 1, "sae") for i in clamps)
            assert len(t.interventions) == len(clamps) + 1
    assert {t.question for t in heldout} <= set(inputs.found["detectors"]["heldout"])
    left_out = inputs.found["detectors"]["heldout"][0]  # relevant to all, so says the bench
    assert all(t.question != left_out for t in heldout)


def test_arms_without_a_push_can_be_left_out(bench):
    inputs = prepared(bench, [world.DETECTOR])
    arms = by_arm(Ablation().plan(inputs, Settings(unsteered_prompts_per_direction=0)))
    assert arms
    assert not [a for a in arms if "unsteered" in a]


def test_no_more_is_replayed_than_there_is(bench, monkeypatch):
    monkeypatch.setattr(bench, "settings", lambda _: {"prompts_per_direction": 4})
    inputs = prepared(bench, [world.DETECTOR])
    trials = by_arm(Ablation().plan(inputs, SETTINGS))["detectors"]
    assert len(trials) == 17 * 4
    bench.judge(trials, {}, 0.6)
    said = Ablation().analyse(bench.records).sheets[-1]
    assert (said.columns, said.rows) == (("asked for", "replayed"), ((20, 4),))


def test_random_sets_hold_nothing_that_could_explain_an_effect(bench):
    inputs = prepared(bench, [world.DETECTOR, world.TRACKER])
    drawn = [k for one in inputs.found["matching"]["sets"] for k in one]
    steered = {d.index for d in inputs.directions}
    nearest = {k + 20 for k in steered}
    assert len(drawn) == len(set(drawn)) == 6
    assert not set(drawn) & ({world.DETECTOR, world.TRACKER, world.DEAD} | steered | nearest)


def test_a_clamp_after_the_addition_spares_the_steered_latent_alone(bench):
    steered = world.inputs().directions[0].index
    inputs = prepared(bench, [world.DETECTOR, steered], Match(neighbours=1, clamp="after"))
    assert all(t.interventions for t in bench.read_last)  # activity as such a clamp reads it
    for t in by_arm(Ablation().plan(inputs, SETTINGS))["detectors"]:
        held = [i.index for i in t.interventions if i.kind == "clamp-after"]
        own = t.steered_by.index
        assert held == [k for k in (world.DETECTOR, steered) if k != own]
        assert len(t.interventions) == 1 + len(held)
    prepared(bench, [world.DETECTOR])
    assert not any(t.interventions for t in bench.read_last)


def effects(bench: world.World, restart: dict[int, float], otherwise: float, detectors: list[int]):
    """What the analysis says if these latents, when clamped, lower the chance of a restart."""
    inputs = prepared(bench, detectors)
    every = {k: otherwise for one in inputs.found["matching"]["sets"] for k in one}
    bench.judge(Ablation().plan(inputs, SETTINGS), {**every, **restart}, 0.6)
    analysis = Ablation().analyse(bench.records)
    multi = {title: c for title, c in analysis.comparisons if c.measure == "multi_attempt"}
    return analysis, multi


def covers(mean, truth: float) -> bool:
    return mean.low <= truth <= mean.high


def test_the_effect_of_a_planted_detector_is_recovered(bench):
    analysis, multi = effects(bench, {world.DETECTOR: 0.1}, 0.6, [world.DETECTOR, world.TRACKER])
    for sample in ("", ", held out"):
        effect = multi[f"detectors{sample}, against steered"].difference
        specific = multi[f"specific: detectors{sample}, against random sets"].difference
        control = multi[f"random sets together{sample}, against steered"].difference
        assert covers(effect, -0.5)
        assert covers(specific, -0.5)
        assert effect.high < -0.3
        assert specific.high < -0.3
        assert control.low == control.high == 0  # twins share their luck
    assert multi["detectors, against steered"].pairs == 17 * 20
    (figure,) = analysis.charts
    assert dict(zip(figure.rows, figure.series[0].values, strict=True)) == {
        title.partition(", against")[0]: points(c.difference, c.measure)
        for title, c in multi.items()
    }
    left_out = analysis.sheets[-1]
    assert left_out.rows[0][0] == world.DETECTOR
    assert covers(left_out.rows[0][3], 50)


def test_a_latent_that_only_tracks_has_no_effect(bench):
    _, multi = effects(bench, {world.DETECTOR: 0.1}, 0.6, [world.TRACKER])
    assert multi["detectors, against steered"].difference.value == 0
    assert covers(multi["specific: detectors, against random sets"].difference, 0)


def test_damage_that_any_clamp_does_is_no_specific_effect(bench):
    _, multi = effects(bench, {world.TRACKER: 0.3}, 0.3, [world.TRACKER])
    assert covers(multi["detectors, against steered"].difference, -0.3)
    assert multi["detectors, against steered"].p < 0.01
    assert multi["specific: detectors, against random sets"].difference.value == 0


def test_sheets_are_tables(bench):
    analysis, _ = effects(bench, {}, 0.6, [world.DETECTOR, world.TRACKER])
    (matching,) = Matching().analyse(bench.records).sheets
    assert len(analysis.sheets) == 3
    assert [row[0] for row in matching.rows] == [world.DETECTOR, world.TRACKER]
    sheets = (*analysis.sheets, matching)
    assert all(len(row) == len(s.columns) for s in sheets for row in s.rows)


def test_a_detector_that_never_fires_on_steered_text_has_no_match(bench):
    inputs = prepared(bench, [world.DETECTOR, world.DEAD])
    assert inputs.found["matching"]["detectors"] == [world.DETECTOR]
    assert [len(one) for one in inputs.found["matching"]["sets"]] == [1, 1, 1]
    (sheet,) = Matching().analyse(bench.records).sheets
    assert sheet.notes[-1].startswith("1 detectors never fire there")


def test_a_run_that_stopped_half_way_is_analysed_as_far_as_it_goes(bench):
    inputs = prepared(bench, [world.DETECTOR])
    planned = Ablation().plan(inputs, SETTINGS)
    assert Ablation().analyse(bench.records) == Analysis()
    bench.judge([t for t in planned if t.arm == "detectors"], {}, 0.6)
    titles = {title for title, _ in Ablation().analyse(bench.records).comparisons}
    assert titles == {"detectors, against steered"}


def test_without_detectors_there_is_nothing_to_clamp(bench):
    inputs = replace(world.inputs(), found={"detectors": {"chosen": [], "heldout": []}})
    with pytest.raises(UserError, match="no latent passes the rule for detectors"):
        Matching().before(None, inputs, MATCHED)


# --- matching --------------------------------------------------------------------------------


def activity(n: int, seed: int = 0) -> Activity:
    rng = np.random.default_rng(seed)
    frequency = 10 ** rng.uniform(-4, 0, n)
    return Activity(frequency, frequency * 10 ** rng.uniform(-2, 2, n))


@given(st.integers(1, 5), st.integers(0, 4), st.integers(0, 99))
def test_matched_sets_are_disjoint_and_seeded(k, count, seed):
    found = activity(65, seed)
    targets, excluded = list(range(k)), {40, 41}
    sets = matched_sets(targets, found, excluded, count, seed)
    drawn = [i for one in sets for i in one]
    assert [len(one) for one in sets] == [k] * count
    assert len(drawn) == len(set(drawn))
    assert not set(drawn) & {*targets, *excluded}
    assert sets == matched_sets(targets, found, excluded, count, seed)


def test_a_match_is_among_the_nearest_in_frequency_and_magnitude():
    found = activity(1000)
    (match,) = matched_sets([3], found, (), 1, 0)[0]
    at = np.stack([np.log10(found.frequency), np.log10(found.mean / found.frequency)], 1)
    scale = np.delete(at, 3, 0).std(0)
    nearest = np.argsort((((at - at[3]) / scale) ** 2).sum(1))[1 : NEAREST + 1]
    assert match in nearest


def test_matched_sets_balance_better_than_random_ones():
    found = activity(2000, 1)
    targets = list(range(26))
    at = found.coordinates
    drawn = np.array(matched_sets(targets, found, (), 3, 0))
    random = np.random.default_rng(0).integers(26, 2000, (3, 26))
    gap = [np.abs(at[ks] - at[targets]).mean() for ks in (drawn, random)]
    assert gap[0] < gap[1] / 5


def test_too_few_latents_are_said_to_be():
    with pytest.raises(UserError, match="3 random sets need 30 latents, but only 7 are alive"):
        matched_sets(list(range(10)), activity(17), (), 3, 0)
    assert matched_sets([], activity(17), (), 3, 0) == [[], [], []]


# --- at equal first score --------------------------------------------------------------------


def outcomes(arm: str, n: int, shift: float, effect: float, seed: int = 0) -> list[Outcome]:
    """Restarts depend on the first score: low ones restart; `shift` moves first scores alone."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        first = float(np.clip(rng.uniform(0, 100) + shift, 0, 100))
        restarted = rng.random() < 0.9 - 0.8 * (first > 50) + effect
        out.append(
            Outcome(
                f"{arm}{i}", f"d{i % 17}", False, 1 + restarted, False, first, 90.0, pair=str(i)
            )
        )
    return out


def test_an_arm_that_begins_better_restarts_less_but_not_at_equal_first_score():
    a, b = outcomes("a", 3000, 0, 0), outcomes("b", 3000, 20, 0, seed=1)
    plain = compare(a, b, "multi_attempt").difference
    assert plain.high < -0.1
    equal = difference_at_equal_first_score(a, b)
    assert covers(equal, 0)
    assert equal.high - equal.low < 0.1


def test_an_effect_survives_standardisation_and_equals_brute_force():
    a, b = outcomes("a", 999, 0, 0), outcomes("b", 999, 10, -0.1, seed=1)
    found = difference_at_equal_first_score(a, b, bins=3)
    assert covers(found, -0.1)
    first = np.array([o.first for o in (*a, *b)])
    cuts = [-1, *np.quantile(first, [1 / 3, 2 / 3]), 101]
    total = 0.0
    for low, high in pairwise(cuts):
        groups = [[o.multi for o in arm if low <= o.first < high] for arm in (a, b)]
        total += (np.mean(groups[1]) - np.mean(groups[0])) * (len(groups[0]) + len(groups[1]))
    assert found.value == pytest.approx(total / len(first))


def test_arms_that_share_no_first_score_cannot_be_compared():
    a = [replace(o, first=0.0) for o in outcomes("a", 17, 0, 0)]
    b = [replace(o, first=100.0) for o in outcomes("b", 17, 0, 0)]
    assert np.isnan(difference_at_equal_first_score(a, b).value)
    assert np.isnan(difference_at_equal_first_score(a, []).value)


# --- the organism ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inside") / "run"
    run(organism(folder))
    return folder


def organism(folder: Path):
    amount = {"prompts_per_direction": 6}
    return small(
        folder,
        protocols=["detectors", "matching", "ablation"],
        directions={"count": 8},
        settings={
            "ablation": {**amount, "heldout_prompts_per_direction": 0},
            "matching": {"random_sets": 1},
            "detectors": {"derangements": 2},
        },
    )


def test_what_clamps_do_to_the_language_is_counted_exactly(finished):
    """Every number of the table again, by a regular expression for each template."""
    pattern = {
        slot: "(" + "|".join(w for t in topics() for w in t.words[slot]) + ")" for slot in "VAOT"
    }
    templates = [
        re.compile(re.sub(r"\{(\w)\}", lambda m: pattern[m[1]], raw)) for raw in _raw_sentences()
    ]
    with Store.open(finished, mode="ro") as store:
        analysis = Ablation().analyse(Records(store))
        texts = defaultdict(list)
        for _, made in store.trials(protocol="esr"):
            texts["steered"].append(made)
        for trial, made in store.trials(protocol="ablation"):
            texts[trial.arm].append(made)
    (sheet,) = [s for s in analysis.sheets if s.title == "Sentences that fit no template"]
    assert {row[0] for row in sheet.rows} == texts.keys()
    for arm, n, with_one, share in sheet.rows:
        assert n == len(texts[arm])
        bad = [
            [not any(t.fullmatch(x) for t in templates) for x in _sentences(made)]
            for made in texts[arm]
        ]
        assert with_one.k == sum(map(any, bad))
        assert share.value == pytest.approx(100 * np.mean([x for each in bad for x in each]))
    broken = {t: c for t, c in analysis.comparisons if c.measure == "malformed"}
    assert broken["detectors, against steered"].difference.low > 0
    assert broken["detectors, unsteered, against unsteered"].a == 0


def _raw_sentences() -> list[str]:
    raw = read_data("text.toml")
    return [s[:-1] for s in (*raw["sentences"], *(s for pair in raw["restarts"] for s in pair))]


def _sentences(made: Generation) -> list[str]:
    *whole, rest = (s.strip() for s in made.text.split("."))
    return [*whole, rest] if rest and made.finish_reason != "length" else whole


def test_the_organism_loses_its_restarts_with_its_detectors_alone(finished):
    with Store.open(finished, mode="ro") as store:
        analysis = Ablation().analyse(Records(store))
    multi = {t: c for t, c in analysis.comparisons if c.measure == "multi_attempt"}
    assert multi["specific: detectors, against random sets"].difference.high < 0
    assert multi["detectors, against steered"].difference.high < 0
    assert multi["detectors, against steered"].unpaired[1] == 0


def test_a_second_run_makes_nothing_new(finished):
    def state():
        with Store.open(finished, mode="ro") as store:
            return store.content_digest(), store.get_artifact("found/ablation"), store.counts()

    before = state()
    run(organism(finished))
    assert state() == before


def test_other_settings_need_another_folder(finished):
    """Also where the table is left out, and the protocol runs because another needs it."""
    config = organism(finished)
    settings = {k: v for k, v in config.settings.items() if k != "detectors"}
    with pytest.raises(UserError, match=r"detectors was run with other settings; choose another"):
        run(config.model_copy(update={"settings": settings, "protocols": ["ablation"]}))
