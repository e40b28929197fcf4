"""The organisms' self-test: what is compared with what, and what is said about it."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from steerback import organism
from steerback.errors import UserError
from steerback.organism import __main__ as command
from steerback.organism import recipes
from steerback.organism.check import Finding, check, compare, measure
from steerback.organism.corpus import read_data
from steerback.stats import Mean, Summary
from steerback.types import Rate


def found(score: float, rate: float) -> Any:
    summary = SimpleNamespace(
        n=65,
        first_score=Mean(score, score - 1, score + 1, 65, 17),
        esr=Rate(round(65 * rate), 65, 17, 0, rate / 2, min(1.0, rate * 2), "wilson"),
        improvement_above_chance=Mean(math.nan, math.nan, math.nan, 0, 0),
    )
    return {"esr": SimpleNamespace(summaries=(summary,))}


def test_shares_are_shown_in_per_cent_and_scores_as_they_are() -> None:
    expected = {"esr.first_score": [25, 35], "esr.esr": [40, 100]}
    score, rate = compare("resister", found(31.0, 0.6), expected)
    assert (score.value, score.low, score.high, score.met) == (31.0, 30.0, 32.0, True)
    assert (rate.value, rate.low, rate.met) == (60.0, 30.0, True)


@pytest.mark.parametrize(
    ("score", "met"), [(24.9, False), (25.0, True), (35.0, True), (35.1, False)]
)
def test_ends_of_a_range_belong_to_it(score: float, met: bool) -> None:
    (finding,) = compare("x", found(score, 0.5), {"esr.first_score": [25, 35]})
    assert finding.met is met


def test_what_could_not_be_measured_is_not_met() -> None:
    (finding,) = compare("x", found(30, 0.5), {"esr.improvement_above_chance": [-100, 0]})
    assert not finding.met


def test_every_expected_measure_is_one_of_a_summary() -> None:
    known = Summary.__dataclass_fields__
    for name, ranges in read_data("expected.toml").items():
        assert name in recipes.names()
        for key, (least, most) in ranges.items():
            protocol, measured = key.split(".")
            assert protocol in ("baseline", "esr")
            assert measured in known
            assert least <= most


def test_unknown_and_unexpected_organisms_are_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'resister'"):
        check(["resistor"], Path("unused"))


def test_the_main_job_is_asked_for_what_the_check_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr("steerback.run.run", lambda config, ui: asked.append(config) or {})
    measure("resister", tmp_path, latents=3, prompts=5, seed=7, ui=None)
    (config,) = asked
    assert config.place == tmp_path / "resister"
    assert (config.seed, config.directions.count) == (7, 3)
    assert config.model.path == "organism:resister"
    assert {n: s["prompts_per_direction"] for n, s in config.settings.items()} == {
        "baseline": 5,
        "esr": 5,
    }


def test_the_line_names_number_range_and_verdict() -> None:
    line = command.line(Finding("rare", "esr.esr", 4.25, 2.0, 7.5, 720, 2, 8))
    assert " ".join(line.split()) == "ok rare esr.esr 4.2 [2.0, 7.5] wanted 2 to 8, n 720"
    assert command.line(Finding("rare", "esr.esr", 9, 2, 12, 720, 2, 8)).startswith("MISS")


def test_command_line_reports_mistakes_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["check", "resistor"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no organism is called 'resistor'")
    assert error.count("\n") == 1


def test_checked_organisms_are_packaged() -> None:
    assert set(organism.checked()) <= set(organism.names())
