"""Traces: regions by exact characters, matches that match, planted latents told apart by the control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import fake_bench as world
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from steerback import regions
from steerback.averages import cluster_mean, per_cluster
from steerback.errors import UserError
from steerback.protocols.base import Analysis
from steerback.protocols.bench import Floats, Text
from steerback.protocols.charts import Dots, Lines
from steerback.protocols.episodes import KINDS, episodes
from steerback.protocols.trace_tables import Significance
from steerback.protocols.traces import Settings, Traces
from steerback.records import Record
from steerback.regions import CORRECTION, NOWHERE, OFF_TOPIC, ON_TOPIC
from steerback.types import (
    Attempt,
    Generation,
    Intervention,
    Message,
    Sampling,
    Trace,
    Trial,
    Verdict,
)

DRIFT = "The sea is deep. The boat is long. "
WAIT = "Wait, that is not right. Let me start over."
BACK = " Bread needs flour. Water too."
EPISODE, QUIET, PLAIN = DRIFT + WAIT + BACK, DRIFT + DRIFT + DRIFT, BACK.strip() + BACK * 3
TRACKER, PREDICTOR, REVERSED, STEERED = 40, 41, 42, 20
"""Off topic, whatever follows; before a restart only; on topic only; the first steered latent."""
DIRECTIONS = range(20, 37)


# --- regions ---------------------------------------------------------------------------------


def test_regions_follow_the_judge_and_the_phrase():
    found = regions.episode(EPISODE, [Attempt(0, 35, 5.0), Attempt(35, len(EPISODE), 90.0)])
    parts = [EPISODE[a:b] for a, b in found]
    assert parts == [DRIFT, WAIT, BACK]


def test_without_a_known_phrase_the_correction_is_the_sentence():
    text = "One thing. Another thing. A third."
    found = regions.episode(text, [Attempt(0, 11, 5.0), Attempt(11, 34, 90.0)])
    assert [text[a:b] for a, b in found] == ["One thing. ", "Another thing.", " A third."]
    cut = regions.episode("One. Two and", [Attempt(0, 5, 5.0), Attempt(5, 12, 9.0)])
    assert cut.on_topic == (12, 12)


@given(st.data())
def test_a_token_belongs_to_the_region_of_its_last_character(data):
    n = data.draw(st.integers(3, 65))
    cuts = sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2)))
    edges = [0, *sorted(data.draw(st.lists(st.integers(0, n), max_size=17))), n]
    spans = list(pairwise(edges))
    parts = regions.Regions((0, cuts[0]), (cuts[0], cuts[1]), (cuts[1], n))
    found = regions.tokens(spans, parts)
    for (start, end), label in zip(spans, found, strict=True):
        if start == end:
            assert label == NOWHERE
        else:
            assert label == sum(end - 1 >= cut for cut in cuts)


def test_a_token_behind_the_text_is_nowhere():
    parts = regions.Regions((0, 2), (2, 3), (3, 5))
    assert regions.tokens([(0, 5), (5, 9)], parts).tolist() == [ON_TOPIC, NOWHERE]


def test_sentences_start_where_they_do():
    text = "One two. Three?  Four"
    spans = [(0, 3), (3, 7), (7, 8), (8, 14), (14, 15), (15, 17), (17, 21)]
    assert regions.sentence_starts(text, spans) == [3, 6]


def test_windows_and_means_by_hand():
    values = np.arange(10, dtype=np.float32).reshape(5, 2)
    window = regions.window(values, 1, 2, 1)
    assert window[1:].tolist() == values[:3].tolist()
    assert np.isnan(window[0]).all()
    assert np.isnan(regions.window(values, 9, 1, 1)).all()
    found = regions.means(values, np.array([0, 0, 1, -1, -1]))
    assert found[:2].tolist() == [[1, 2], [4, 5]]
    assert np.isnan(found[2]).all()


# --- a world with texts ----------------------------------------------------------------------


class Written(world.World):
    """Texts of one token per character; latents fire by what was written there."""

    def traces(self, texts: Sequence[Text], *, layer: int, latents: Sequence[int]) -> list[Floats]:
        self.read_with = [*getattr(self, "read_with", []), *(t.interventions for t in texts)]
        return [_activations(t)[t.skip :, list(latents)] for t in texts]

    def recorded(self, records: Sequence[Record], latents: Sequence[int]) -> list[Floats]:
        kept = dict(self.store.traces())
        return [kept[r.trial.key].values[:, list(latents)] for r in records]


def _activations(text: Text) -> np.ndarray:
    said = "".join(map(chr, text.response_ids))
    at = np.arange(len(said))
    cut = said.find(WAIT) if WAIT in said else len(said)
    rng = np.random.default_rng([len(said), *text.prompt_ids])
    out = np.abs(rng.normal(size=(len(said), 65)))
    drifted = (at < cut) & said.startswith(DRIFT)
    out[:, TRACKER] += 5 * drifted
    out[:, PREDICTOR] += 5 * (drifted & (at >= cut - 12)) * (WAIT in said)
    out[:, REVERSED] += 5 * (at > cut)
    out[:, STEERED] += 9 * bool(text.interventions)
    return out.astype(np.float32)


def written(protocol: str, direction: int, n: int, text: str, *scores: float):
    """A trial with its generation and verdict."""
    add = Intervention("add", "sae", direction, 2.0, 1)
    question = f"question {n}"
    trial = Trial(
        protocol,
        "steered",
        "m",
        question,
        (Message("user", question),),
        Sampling(),
        1000 * direction + n,
        () if protocol == "baseline" else (add,),
    )
    cuts = [0, text.find(WAIT), len(text)] if len(scores) > 1 else [0, len(text)]
    attempts = tuple(Attempt(*a) for a in zip(cuts, cuts[1:], scores, strict=False))
    made = Generation(trial.key, (1000 * direction + n,), (*map(ord, text), world.END), text, "eos")
    return trial, made, Verdict(trial.key, world.JUDGE, attempts, "ok")


@pytest.fixture
def bench(tmp_path: Path):
    made = Written(tmp_path / "run")
    rows = []
    for k in DIRECTIONS:
        for n in range(4):
            rows += [
                written("esr", k, n, EPISODE, 10.0, 90.0),
                written("baseline", k, n, PLAIN, 100.0),
                written("esr", k, 50 + n, QUIET, 12.0 + n),
            ]
        rows += [written("esr", k, 9, EPISODE, 60.0, 10.0), written("esr", k, 60, QUIET, 99.0)]
    made.store.add([(t, g) for t, g, _ in rows])
    made.store.add_verdicts([v for _, _, v in rows])
    yield made
    made.store.close()


def inputs():
    return world.inputs(found={"detectors": {"chosen": [TRACKER, PREDICTOR, REVERSED]}})


def analysed(bench: Written, **changes) -> Analysis:
    settings = Settings(**{"before": 12, "after": 5, **changes})
    found = Traces().before(bench, inputs(), settings)
    stored = {"settings": settings.model_dump(mode="json"), "found": found}
    bench.store.put_artifact("found/traces", stored)
    return Traces().analyse(bench.records)


def rows(analysis: Analysis, title: str) -> dict[str, dict[str, object]]:
    (sheet,) = [s for s in analysis.sheets if s.title == title]
    return {str(r[0]): dict(zip(sheet.columns, r, strict=True)) for r in sheet.rows}


def test_an_episode_improved_and_its_matches_share_direction_strength_and_score(bench):
    found = episodes(bench, 200, 15.0)
    assert len(found) == 17 * 4
    used = [e.quiet.trial.key for e in found if e.quiet]
    assert len(used) == len(set(used)) == 17 * 4
    for e in found:
        assert e.record.outcome.esr
        assert e.quiet.trial.steered_by == e.record.trial.steered_by
        assert abs(e.quiet.outcome.first - e.record.outcome.first) <= 15
        assert e.quiet.outcome.multi is False
        assert (e.unsteered.trial.question, e.unsteered.trial.seed) == (
            e.record.trial.question,
            e.record.trial.seed,
        )
        assert e.onset == len(DRIFT) == e.quiet_at  # there a sentence of the match starts too
        said = {OFF_TOPIC: DRIFT, CORRECTION: WAIT, ON_TOPIC: BACK}
        for region, text in said.items():
            assert (e.labels == region).sum() == len(text)


def test_no_match_where_the_score_or_the_strength_is_another(bench):
    near = episodes(bench, 200, 2.5)
    assert sum(e.quiet is not None for e in near) == 17  # first scores of 12 alone are that near
    trial, made, verdict = written("esr", 20, 5, EPISODE, 10.0, 90.0)
    stronger = replace(trial.interventions[0], value=3.0)
    trial = replace(trial, interventions=(stronger,))
    bench.store.add([(trial, replace(made, trial_key=trial.key))])
    bench.store.add_verdicts([replace(verdict, trial_key=trial.key)])
    (one,) = [e for e in episodes(bench, 200, 15.0) if e.record.trial.key == trial.key]
    assert one.quiet is None


def test_directions_take_turns(bench):
    found = episodes(bench, 17, 15.0)
    assert len({e.record.trial.cluster for e in found}) == 17


def test_the_control_tells_what_tracks_drift_from_what_precedes_a_restart(bench):
    analysis = analysed(bench)
    back = rows(analysis, "Off topic, against back on topic")
    twin = rows(analysis, "Off topic, against the unsteered twin")
    control = rows(analysis, "Before a restart, and without one")
    for k in (TRACKER, PREDICTOR):  # the published inference finds both
        assert back[str(k)]["p, Holm"] < 1e-3
        assert twin[str(k)]["p, Holm"] < 1e-3
        assert back[str(k)]["d"] > 3
    tracked = control[str(TRACKER)]
    assert tracked["difference"].low < 0 < tracked["difference"].high
    assert tracked["p, Holm"] > 0.05
    assert control[str(PREDICTOR)]["difference"].low > 4
    assert control[str(PREDICTOR)]["Cliff's delta"] == 1
    assert control[str(PREDICTOR)]["p, Holm"] < 1e-3


def test_an_effect_the_other_way_is_not_significant_one_sided(bench):
    found = rows(analysed(bench), "Off topic, against back on topic")[str(REVERSED)]
    assert found["d"] < -3
    assert found["p, paired t"] > 0.999
    assert found["p, Wilcoxon"] > 0.999


def test_levels_are_those_that_were_planted(bench):
    levels = rows(analysed(bench), "Activation by region")[str(TRACKER)]
    noise = np.sqrt(2 / np.pi)
    assert levels["off topic"].value == pytest.approx(5 + noise, abs=0.1)
    for name in ("correction", "on topic", "unsteered, whole"):
        assert levels[name].value == pytest.approx(noise, abs=0.1)
        assert levels[name].clusters == 17


def test_the_switch_says_whether_the_steering_is_on(bench):
    on = rows(analysed(bench), "Activation by region")["the steered latent"]
    steered = [r for r in bench.read_with if r]
    assert len(steered) == 2 * 17 * 4
    bench.read_with.clear()
    off = rows(analysed(bench, reading="unsteered"), "Activation by region")["the steered latent"]
    assert not any(bench.read_with)
    assert on["off topic"].value > off["off topic"].value


def test_what_was_recorded_is_read_without_another_pass(bench):
    settings = Settings(reading="generated")
    assert Traces().recorded(inputs(), settings) == [TRACKER, PREDICTOR, REVERSED]
    assert Traces().recorded(inputs(), Settings()) == ()
    for r in (*bench.records.of("esr"), *bench.records.of("baseline")):
        text = Text(r.generation.prompt_ids, r.generation.token_ids[:-1], r.trial.interventions)
        values = np.vstack([_activations(text), np.full((1, 65), 99)])  # the end token's row
        trace = Trace("sae", 1, tuple(range(65)), values.astype(np.float32))
        bench.store.add_traces({r.trial.key: trace})
    again = analysed(bench, reading="generated")
    assert again.sheets[1:] == analysed(bench).sheets[1:]


def test_figures_show_one_episode_the_mean_and_the_control(bench):
    one, around, control = analysed(bench).charts
    assert isinstance(one, Lines)
    assert [(r.start, r.end) for r in one.regions] == [
        (0, len(DRIFT)),
        (len(DRIFT), len(DRIFT + WAIT)),
        (len(DRIFT + WAIT), len(EPISODE)),
    ]
    assert isinstance(around, Lines)
    assert around.x == tuple(range(-12, 6))
    assert [s.name for s in around.panels[0][1]] == list(KINDS)
    assert isinstance(control, Dots)
    place = [r.startswith(str(TRACKER)) for r in control.rows].index(True)
    with_, without, plain = (s.values[place].value for s in control.series)
    assert with_ == pytest.approx(without, rel=0.1)
    assert plain < with_ / 3


def test_without_episodes_or_latents_there_is_nothing_to_trace(bench, tmp_path):
    assert Traces().analyse(bench.records) == Analysis()
    nothing = world.inputs(found={"detectors": {"chosen": []}})
    with pytest.raises(UserError, match="no latent passes the rule for detectors"):
        Traces().before(bench, nothing, Settings())
    empty = Written(tmp_path / "empty")
    found = Traces().before(empty, inputs(), Settings())
    empty.store.put_artifact(
        "found/traces", {"settings": Settings().model_dump(mode="json"), "found": found}
    )
    assert Traces().analyse(empty.records) == Analysis()
    empty.store.close()


# --- statistics ------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["two-sided", "greater", "less"])
def test_tests_against_scipy_on_means_of_directions(side):
    rng = np.random.default_rng(3)
    values, names = rng.normal(0.3, 1, 65), [f"d{i % 17}" for i in range(65)]
    means = np.array([values[[n == d for n in names]].mean() for d in sorted(set(names))])
    assert per_cluster(values, names) == pytest.approx(means)
    found = Significance.of(values, names, side)
    assert found.t == pytest.approx(stats.ttest_1samp(means, 0, alternative=side).pvalue)
    assert found.rank == pytest.approx(stats.wilcoxon(means, alternative=side).pvalue)
    assert found.d == pytest.approx(means.mean() / means.std(ddof=1))
    assert Significance.of(values[:1], names[:1], side) == Significance(None, None, None)
    assert Significance.of(np.zeros(17), names[:17], side).t == 1
    assert Significance.of(np.ones(17), names[:17], side).t == {"less": 1}.get(side, 0)


def test_a_cluster_mean_counts_what_is_missing_and_resamples_directions():
    values = np.array([1.0, np.nan, 3.0, 5.0])
    found = cluster_mean(values, ["a", "a", "b", "b"])
    assert (found.value, found.n, found.clusters, found.missing) == (3.0, 3, 2, 1)
    assert found.low <= 3 <= found.high
    assert np.isnan(cluster_mean(np.array([np.nan]), ["a"]).value)
    assert np.isnan(cluster_mean(np.array([1.0, 2.0]), ["a", "a"]).low)
