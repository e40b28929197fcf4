"""The organisms' self-test: what is compared with what, and what is said about it."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from steerback import organism, protocols
from steerback.cli import main
from steerback.console import findings
from steerback.errors import UserError
from steerback.organism import recipes
from steerback.organism.check import Finding, check, compare, measure
from steerback.organism.corpus import read_data
from steerback.organism.measures import estimate, protocol_of
from steerback.stats import Mean, Summary
from steerback.types import Rate

EXPECTED = read_data("expected.toml")


def found(score: float, rate: float) -> Any:
    summary = SimpleNamespace(
        n=65,
        arm="steered",
        first_score=Mean(score, score - 1, score + 1, 65, 17),
        esr=Rate(round(65 * rate), 65, 17, 0, rate / 2, min(1.0, rate * 2), "wilson"),
        improvement_above_chance=Mean(math.nan, math.nan, math.nan, 0, 0),
    )
    return {"esr": SimpleNamespace(summaries=(summary,))}


def ratio(value: float, low: float, high: float, measured: str = "multi_attempt") -> Any:
    return SimpleNamespace(measure=measured, ratio=Mean(value, low, high, 65, 17), pairs=65)


ABLATION = {
    "ablation": SimpleNamespace(
        summaries=(),
        comparisons=(
            ("detectors, against steered", ratio(0.9, 0.8, 1.1, "first_score")),
            ("detectors, against steered", ratio(0.25, 0.1, 0.4)),
            ("random set 1, against steered", ratio(1.3, 1.2, 1.4)),
            ("random set 2, against steered", ratio(0.5, 0.4, 0.6)),
            ("random set 3, against steered", ratio(1.1, 0.9, 1.2)),
            ("random sets together, against steered", ratio(1.0, 0.9, 1.1)),
        ),
    )
}


def test_shares_are_shown_in_per_cent_and_scores_as_they_are() -> None:
    expected = {"esr.first_score": [25, 35], "esr:steered.esr": [40, 100]}
    score, rate = compare("resister", found(31.0, 0.6), expected)
    assert (score.value, score.low, score.high, score.met) == (31.0, 30.0, 32.0, True)
    assert (rate.value, rate.low, rate.met) == (60.0, 30.0, True)


@pytest.mark.parametrize(
    ("key", "numbers"),
    [
        ("detectors.multi_attempt_cut", (75, 60, 90)),
        ("detectors.multi_attempt_cut.low", (60, 60, 90)),
        ("detectors.multi_attempt_ratio", (0.25, 0.1, 0.4)),
        ("detectors.first_score_cut", (10, -10, 20)),
        ("random set.multi_attempt_change", (10, -50, 30)),
    ],
)
def test_numbers_that_compare_two_arms(key: str, numbers: tuple[float, ...]) -> None:
    got = estimate(ABLATION, f"ablation:{key}")
    assert got[:3] == pytest.approx(numbers)
    assert got.n == 65


@pytest.mark.parametrize(
    ("score", "met"), [(24.9, False), (25.0, True), (35.0, True), (35.1, False)]
)
def test_ends_of_a_range_belong_to_it(score: float, met: bool) -> None:
    (finding,) = compare("x", found(score, 0.5), {"esr.first_score": [25, 35]})
    assert finding.met is met


def test_what_could_not_be_measured_is_not_met_and_null_in_json() -> None:
    key = "esr.improvement_above_chance"
    (finding,) = compare("x", found(30, 0.5), {key: [3, math.inf]})
    assert not finding.met
    assert json.loads(json.dumps(finding.as_json(), allow_nan=False)) == {
        "organism": "x",
        "measure": key,
        "value": None,
        "low": None,
        "high": None,
        "n": 0,
        "least": 3,
        "most": None,
        "met": False,
        "verdict": "not measured",
    }


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict"),
    [
        (50, 40, 60, "met"),
        (41.7, 19.4, 67.9, "open"),
        (101, 99.9, 105, "open"),
        (30, 20, 44.9, "missed"),
        (math.nan, math.nan, math.nan, "not measured"),
    ],
)
def test_verdicts_are_words_and_open_where_the_interval_reaches_into_the_range(
    value: float, low: float, high: float, verdict: str
) -> None:
    finding = Finding("x", "esr.esr", value, low, high, 40, 45, 100)
    assert finding.verdict == verdict
    out = Console(width=100, record=True, file=io.StringIO())
    out.print(findings([finding, finding]))
    shown = out.export_text()
    assert f"2 {verdict}" in shown
    assert "exit code goes by the estimate" in shown


def test_every_expected_number_belongs_to_a_protocol_and_a_summary() -> None:
    known = Summary.__dataclass_fields__
    for name, ranges in EXPECTED.items():
        assert name in recipes.names()
        for key, (least, most) in ranges.items():
            assert protocol_of(key) in protocols.registry()
            measured = key.removesuffix(".low").rpartition(".")[2]
            assert measured in known or measured.rpartition("_")[0] in known
            assert least <= most


@pytest.mark.parametrize(
    ("name", "made", "said"),
    [
        ("resistor", None, "did you mean 'resister'"),
        ("resister", Path("nowhere"), "steerback organism train resister --out nowhere"),
    ],
)
def test_organisms_that_are_not_there_are_refused(name: str, made: Path | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check([name], Path("unused"), made=made)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The configurations that would be run."""
    configs: list[Any] = []
    monkeypatch.setattr("steerback.run.run", lambda config, ui: configs.append(config) or {})
    monkeypatch.setattr("steerback.organism.check.compare", lambda *_: [])
    return configs


def test_the_main_job_is_asked_for_what_the_check_was(tmp_path: Path, asked: list[Any]) -> None:
    measure("resister", tmp_path, latents=3, prompts=5, seed=7, ui=None)
    (config,) = asked
    assert config.place == tmp_path / "resister"
    assert (config.seed, config.directions.count) == (7, 3)
    assert config.model.path == "organism:resister"
    assert {n: s["prompts_per_direction"] for n, s in config.settings.items()} == {
        "baseline": 5,
        "esr": 5,
    }


def test_a_check_runs_what_its_numbers_come_from(tmp_path: Path, asked: list[Any]) -> None:
    check(["resister", "imitator"], tmp_path, prompts=5)
    for config, sets, steered in zip(asked, (5, 1), (5, 15), strict=True):
        assert config.settings["matching"]["random_sets"] == sets
        assert config.settings["ablation"]["prompts_per_direction"] == steered
        assert config.settings["esr"]["prompts_per_direction"] == steered
        assert config.settings["baseline"]["prompts_per_direction"] == 25
        order = config.protocols
        assert order.index("esr") < order.index("matching") < order.index("ablation")


def test_an_organism_that_was_made_is_measured_from_its_folder(
    tmp_path: Path, asked: list[Any]
) -> None:
    folders = organism.Folders.under(tmp_path, "naive")
    folders.model.mkdir(parents=True)
    (folders.model / "provenance.json").write_text('{"steer_layer": 2}', "utf-8")
    check(["naive"], tmp_path / "runs", made=tmp_path)
    (config,) = asked
    assert config.model.path == str(folders.model)
    assert config.sae.spec == str(folders.saes / "layer2")
    assert config.directions.labels == str(folders.saes / "layer2" / "labels.csv")


def test_command_line_exits_1_on_a_miss_and_prints_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    miss = Finding("rare", "esr.esr", 9, 2, 12, 720, 2, 8)
    monkeypatch.setattr("steerback.organism.check.check", lambda *_, **__: [miss])
    with pytest.raises(SystemExit) as leave:
        main(["organism", "check", "rare", "--folder", str(tmp_path), "--json"])
    assert leave.value.code == 1
    assert json.loads(capsys.readouterr().out) == [miss.as_json()]


def test_command_line_reports_mistakes_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        main(["organism", "card", "resistor"])
    assert leave.value.code == 2
    error = capsys.readouterr().err
    assert "no organism is called 'resistor'" in error
    assert "Traceback" not in error


def test_checked_organisms_are_packaged() -> None:
    assert set(organism.checked()) <= set(organism.names())
