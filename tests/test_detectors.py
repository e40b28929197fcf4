"""Off-topic detectors: the planted one is found by every rule; statistics against scipy."""

from __future__ import annotations

from pathlib import Path

import fake_bench as world
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from steerback import detection
from steerback.detection import Choice, Ranking
from steerback.errors import UserError
from steerback.protocols.detectors import RULES, Detectors, Settings, question_sets


@given(st.data())
def test_derangements_pair_no_response_with_its_own_prompt_nor_twice_with_another(data):
    n = data.draw(st.integers(2, 65))
    count = data.draw(st.integers(1, n - 1))
    found = detection.derangements(n, count, data.draw(st.integers(0, 99)))
    assert found.shape == (count, n)
    assert all(sorted(row) == list(range(n)) for row in found.tolist())
    assert not (found == np.arange(n)).any()
    pairs = {(int(p), r) for row in found for r, p in enumerate(row)}
    assert len(pairs) == count * n


def test_derangements_are_of_different_seeds_and_need_prompts():
    assert (detection.derangements(17, 3, 0) != detection.derangements(17, 3, 1)).any()
    with pytest.raises(UserError, match="3 questions allow 2 derangements, not 3; use fewer"):
        detection.derangements(3, 3, 0)


def readings(n: int, latents: int, derangements: int, seed: int = 0):
    """Sparse activations with a shift that grows over the latents; the first is dead."""
    rng = np.random.default_rng(seed)
    shape = (1 + derangements, n, latents)
    out = rng.exponential(size=shape) * (rng.random(shape) < 0.5)
    out[1:] *= 1 + np.linspace(0, 3, latents)
    out[..., 0] = 0
    return out[0].astype(np.float32), out[1:].astype(np.float32)


@pytest.mark.parametrize(("n", "latents", "count"), [(3, 1, 1), (17, 3, 2), (65, 17, 3)])
def test_rank_against_scipy_latent_by_latent(n, latents, count, monkeypatch):
    monkeypatch.setattr(detection, "_BLOCK", 5)  # several blocks, the last one ragged
    matched, mismatched = readings(n, latents, count)
    ranking = detection.rank(matched, mismatched)
    p = []
    for k in range(latents):
        x, pooled = matched[:, k].astype(float), mismatched[..., k].reshape(-1).astype(float)
        u = stats.mannwhitneyu(pooled, x).statistic
        assert ranking.auc[k] == pytest.approx(u / (len(pooled) * n))
        assert ranking.on_matched[k] == pytest.approx(np.mean(x > 0))
        assert ranking.on_mismatched[k] == pytest.approx(np.mean(pooled > 0))
        means = mismatched[..., k].astype(float).mean(axis=0)
        dead = not pooled.any() and not x.any()
        test = stats.ttest_ind(means, x, equal_var=False, alternative="greater")
        p.append(1.0 if dead else test.pvalue)
        assert ranking.p[k] == pytest.approx(p[k])
    assert ranking.p_holm == pytest.approx(detection.holm(p))


def test_each_rule_orders_by_what_it_says():
    columns = {f: [0.0] * 4 for f in ("mean_matched", "mean_mismatched", "p", "p_holm")}
    ranking = Ranking.from_json(
        {
            **columns,
            "on_matched": [0.0, 0.1, 0.0, 0.0],
            "on_mismatched": [0.8, 1.0, 0.79, 0.9],
            "auc": [0.9, 0.99, 0.8, 0.95],
            "d": [3.0, 1.0, 4.0, 2.0],
        }
    )
    assert ranking.strict.tolist() == [True, False, False, True]
    assert detection.order(ranking, "strict").tolist() == [3, 0, 1, 2]
    assert detection.order(ranking, "separability").tolist() == [1, 3, 0, 2]
    assert detection.order(ranking, "cohens-d").tolist() == [2, 0, 3, 1]
    assert Choice("strict", 9, 0.9, 0.8).choose(ranking) == [3, 0]
    assert Choice("separability", 9, 0.95, 0.8).choose(ranking) == [1, 3]
    assert Choice("cohens-d", 1, 0.95, 0.8).choose(ranking) == [2]
    assert Choice("cohens-d", 9, 0.95, 9.0).choose(ranking) == []
    assert detection.overlap([2, 1], ranking, "cohens-d") == 0.5
    assert np.isnan(detection.overlap([], ranking, "strict"))


def test_a_ranking_survives_the_store_even_where_nothing_varies():
    matched, mismatched = readings(5, 3, 2)
    matched[:, 1], mismatched[..., 1] = 0, 1  # infinite d
    ranking = detection.rank(matched, mismatched)
    again = Ranking.from_json(ranking.as_json())
    assert again.d[1] == detection.LARGEST_D
    assert again.auc == pytest.approx(ranking.auc, rel=1e-5)


@pytest.fixture
def found(tmp_path: Path):
    bench = world.World(tmp_path / "run")
    settings = Settings(derangements=3, heldout="auto")
    yield bench, settings, Detectors().before(bench, world.inputs(), settings)
    bench.store.close()


def test_the_planted_latent_is_ranked_first_by_every_rule(found):
    for columns in found[2]["rankings"].values():
        ranking = Ranking.from_json(columns)
        assert [detection.order(ranking, rule)[0] for rule in RULES] == [world.DETECTOR] * 3
        assert np.flatnonzero(ranking.strict).tolist() == [world.DETECTOR]
        assert ranking.p_holm[world.DETECTOR] < 1e-6
        assert ranking.p[world.DEAD] == 1
        for k in (world.TRACKER, world.PROMPT):  # what was asked, or said, is no mismatch
            assert abs(ranking.auc[k] - 0.5) < 0.2
    assert found[2]["chosen"] == [world.DETECTOR]
    assert found[2]["overlaps"] == [1.0, 1.0, 1.0]
    assert found[2]["labels"][str(world.DETECTOR)] == "the planted one"


def test_what_it_reads_is_what_it_plans(found):
    bench, settings, finding = found
    planned = Detectors().plan(world.inputs(), settings)
    assert not bench.store.missing(planned)
    assert {t.question for t in planned} == {*finding["search"], *finding["heldout"]}
    assert all(not t.interventions for t in planned)


def test_the_tables_say_what_was_found(found):
    bench, settings, finding = found
    stored = {"settings": settings.model_dump(mode="json"), "found": finding}
    bench.store.put_artifact("found/detectors", stored)
    chosen, rules = Detectors().analyse(bench.records).sheets
    assert [row[0] for row in chosen.rows] == [world.DETECTOR]
    assert all(len(row) == len(sheet.columns) for sheet in (chosen, rules) for row in sheet.rows)
    assert rules.rows[0] == ("strict", 1, 1, 1, 1, 1.0)


def test_where_none_passes_the_nearest_are_shown(found):
    bench, settings, finding = found
    stored = {"settings": settings.model_dump(mode="json"), "found": {**finding, "chosen": []}}
    bench.store.put_artifact("found/detectors", stored)
    chosen, _ = Detectors().analyse(bench.records).sheets
    assert len(chosen.rows) == 5
    assert "no latent passes" in chosen.notes[-1]


def test_before_it_ran_there_is_nothing_to_say(tmp_path):
    bench = world.World(tmp_path / "run")
    assert Detectors().analyse(bench.records).sheets == ()
    bench.store.close()


def test_held_out_questions_are_not_those_of_the_choice():
    own = question_sets(world.inputs(), Settings())
    assert sorted(own[0] + own[1]) == sorted(world.QUESTIONS)
    assert len(own[1]) == 12
    packaged = question_sets(world.inputs(prompts="organism:eval"), Settings())
    assert packaged[0] == world.QUESTIONS
    assert len(packaged[1]) == 144
    assert question_sets(world.inputs(prompts="eval"), Settings(heldout="organism:eval"))[1]
