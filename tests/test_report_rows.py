"""The numbers for programs: their keys, their units, and what p values and intervals say together."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_runs import CONFIG, invented, judged, make_trial, say
from stats_data import arm
from statsmodels.stats.multitest import multipletests
from typer.testing import CliRunner

from steerback import protocols
from steerback.cli import app
from steerback.detection import rank
from steerback.protocols.base import Analysis
from steerback.report.page import write_report
from steerback.report.rows import MEASURED
from steerback.report.significance import adjusted, disagree, least_p, notes
from steerback.stats import Comparison, Mean, compare, summarise
from steerback.stats.paired import swap_test
from steerback.store import Store


class Fake:
    """A protocol with two comparisons, one of them with trials that have no twin."""

    name = "fake"
    asks = "?"

    def analyse(self, records: Any) -> Analysis:
        a, b = arm(1, 9, 5), arm(2, 9, 5)
        summary = summarise(a, protocol="fake", arm="odd", model="tiny", n_resamples=99)
        compared = (
            ("b, against a", compare(a, b, "esr", n_resamples=99)),
            ("few, against a", compare(a, b[:30], "first_score", n_resamples=99)),
        )
        return Analysis((summary,), compared)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = invented(tmp_path / "run")
    readings = np.random.default_rng(0).random((3, 8, 5), dtype=np.float32)
    ranking = rank(readings[0], readings[1:]).as_json()
    found = {
        "chosen": [3],
        "labels": {"3": "sea"},
        "rankings": {"max": ranking, "held out": ranking},
    }
    with Store.open(folder, {**CONFIG}) as store:
        odd = make_trial(7, "fake", arm="odd")
        store.add([(odd, say(odd, "odd"))])
        store.add_verdicts([judged(odd, "odd", 50.0)])
        settings = {"pool": "max", "rule": "separability"}
        store.put_artifact("found/detectors", {"settings": settings, "found": found})
    known = {**protocols.registry(), "fake": Fake()}
    monkeypatch.setattr(protocols, "registry", lambda: known)
    return folder


def rows(*folders: Path) -> list[dict[str, Any]]:
    done = CliRunner().invoke(app, ["report", *map(str, folders), "--json"])
    found: list[dict[str, Any]] = json.loads(done.output)
    return found


def test_every_kind_of_row_has_its_keys(run: Path) -> None:
    found = rows(run)
    assert Counter(r["kind"] for r in found) == {
        "arm": 3,
        "comparison": 2,
        "detector": 1,
        "calibration": 6,
    }
    assert all((r["run"], r["folder"]) == ("invented", str(run)) for r in found)
    arms = [r for r in found if r["kind"] == "arm"]
    assert [(r["protocol"], r["n"], r["missing"]) for r in arms[:2]] == [
        ("baseline", 60, 0),
        ("esr", 57, 3),
    ]
    for name in (
        *("multi_attempt", "esr", "cond_improvement", "chance_improvement", "first_score"),
        *("improvement_above_chance", "esr_above_chance", "on_topic", "implicit_decline"),
    ):
        assert all(set(r[name]) == {"rate", "low", "high"} for r in arms)
    both, few = (r for r in found if r["kind"] == "comparison")
    assert both["difference"]["value"] == pytest.approx(both["compared"] - both["reference"])
    assert both["without_twin"] == [0, 0]
    assert few["without_twin"] == [15, 0]
    assert few["p_holm"] >= few["p"]
    [detector] = [r for r in found if r["kind"] == "detector"]
    assert detector["label"] == "sea"
    assert {*MEASURED, *(f"held_out_{m}" for m in MEASURED)} <= detector.keys()
    calibrated = [r for r in found if r["kind"] == "calibration"]
    assert Counter(r["reached"] for r in calibrated) == {True: 5, False: 1}
    assert "too far off" in calibrated[-1]["reason"]


def test_runs_of_one_name_have_names_of_their_own(run: Path) -> None:
    again = invented(run.parent / "again", 6)
    names = {(r["run"], r["folder"]) for r in rows(run, again, run)}
    assert names == {("invented (run)", str(run)), ("invented (again)", str(again))}
    assert Counter(r["folder"] for r in rows(run, run))[str(run)] == 12


def test_page_marks_where_interval_and_p_disagree(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "marked ≠" not in write_report([run]).path.read_text("utf-8")
    monkeypatch.setattr("steerback.report.significance.disagree", lambda c: c.measure == "esr")
    html = write_report([run]).path.read_text("utf-8")
    assert "1 row is marked ≠" in html
    assert html.count('">≠ ') == 1


# --- p values -----------------------------------------------------------------------------------------


def made(clusters: int, p: float, low: float, high: float, **changes: Any) -> Comparison:
    mean = Mean((low + high) / 2, low, high, 9, clusters)
    c = Comparison("esr", 0.1, 0.2, mean, mean, p, "two-sided", 9, clusters, 0, (0, 0))
    return replace(c, **changes)


def test_adjusted_p_values_are_holms_among_the_known_of_a_measure() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(20) ** 3
    with_gaps = np.insert(p, [0, 7, 20], math.nan)
    measures = np.where(rng.random(len(with_gaps)) < 0.5, "esr", "first_score")
    compared = [made(400, x, 0.1, 0.2, measure=m) for x, m in zip(with_gaps, measures, strict=True)]
    found = adjusted(compared)
    assert np.isnan(found[np.isnan(with_gaps)]).all()
    for measure in ("esr", "first_score"):
        of = (measures == measure) & ~np.isnan(with_gaps)
        assert found[of] == pytest.approx(multipletests(with_gaps[of], method="holm")[1])
    assert len(adjusted([])) == 0


@pytest.mark.parametrize("alternative", ["two-sided", "greater"])
@pytest.mark.parametrize("clusters", [2, 4, 6])
def test_no_swap_test_goes_below_the_least_p(clusters: int, alternative: Any) -> None:
    apart = np.tile([0.0, 5.0, 5.0, 5.0], (clusters, 1))
    found = swap_test(apart, alternative, n_resamples=20_000)
    least = least_p(made(clusters, 0.5, -1, 1, alternative=alternative))
    assert found == pytest.approx(least, rel=0.15)


def test_many_directions_are_bounded_by_the_draws() -> None:
    assert least_p(made(400, 0.5, -1, 1)) == pytest.approx(1 / 2001)


@pytest.mark.parametrize(
    ("p", "low", "high", "alternative", "expected"),
    [
        (0.136, 0.013, 0.2, "two-sided", True),
        (0.02, 0.013, 0.2, "two-sided", False),
        (0.02, -0.1, 0.2, "two-sided", True),
        (0.3, -0.1, 0.2, "two-sided", False),
        (0.3, 0.1, 0.2, "less", False),
        (math.nan, 0.1, 0.2, "two-sided", False),
    ],
)
def test_interval_and_p_disagree_where_one_alone_excludes_no_difference(
    p: float, low: float, high: float, alternative: Any, expected: bool
) -> None:
    assert disagree(made(8, p, low, high, alternative=alternative)) == expected


def test_notes_name_the_least_p_and_what_holm_leaves() -> None:
    few = [made(8, 0.01, 0.1, 0.2)] * 10
    said = " ".join(notes(few))
    assert "With 8 directions p cannot fall below about 0.0078" in said
    assert "at most 10: so many for so few directions" in said
    assert "marked" not in said
    many = " ".join(notes([made(400, 0.3, 0.1, 0.2), made(8, 0.3, -0.1, 0.2)]))
    assert "With 8 to 400 directions" in many
    assert "0.0005 to 0.0078" in many
    assert "1 row is marked" in many
    assert "so many" not in many
    assert notes([]) == []
