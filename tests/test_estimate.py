"""What `steerback plan` counts, against what a run makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runs import small
from typer.testing import CliRunner

from steerback import estimate
from steerback.cli import app
from steerback.errors import UserError
from steerback.judge.prompt import estimate_tokens
from steerback.prompts import load_prompts
from steerback.run import run
from steerback.store import Store


def test_the_plan_bounds_what_is_made_and_the_rate_is_the_runs(tmp_path: Path) -> None:
    config = small(tmp_path / "run")
    found = {p.name: p for p in estimate.parts(config)}
    with pytest.raises(UserError, match="run"):
        estimate.Rate.of(tmp_path / "run")
    run(config)
    with Store.open(config.place, mode="ro") as store:
        for name, part in found.items():
            lengths = [len(g.token_ids) for _, g in store.trials(protocol=name)]
            assert part.trials is not None
            assert part.tokens is not None
            assert 0 < len(lengths) <= part.trials
            assert sum(lengths) <= part.tokens
        total = [len(g.token_ids) for _, g in store.trials()]
        seconds = sum(store.engine_seconds().values())
    rate = estimate.Rate.of(config.place)
    assert rate.tokens_per_second == pytest.approx(sum(total) / seconds)
    assert rate.tokens_per_trial == pytest.approx(sum(total) / len(total))
    likely, most = estimate.hours(list(found.values()), rate, 1)
    assert 0 < likely <= most
    half = estimate.hours(list(found.values()), rate, 2)
    assert half == pytest.approx((likely / 2, most / 2))


def test_numbers_of_a_plan_by_hand(tmp_path: Path) -> None:
    config = small(tmp_path, protocols=["baseline", "esr", "traces"])
    found = estimate.parts(config)
    assert [(p.name, p.trials, p.tokens) for p in found if p.trials is not None] == [
        ("calibration", 4 * (2 * 3 + 5), 44 * 48),
        ("baseline", 12, 12 * 48),
        ("esr", 12, 12 * 48),
    ]
    assert [p.name for p in found if p.trials is None] == ["detectors", "traces"]
    rate = estimate.Rate(68 * 48 / 3600, None, "as given")
    assert estimate.hours(found, rate, 1) == pytest.approx((1.0, 1.0))


def test_calls_of_a_judge_by_hand_and_none_where_nobody_is_asked(tmp_path: Path) -> None:
    config = small(tmp_path, protocols=["baseline", "esr", "traces"])
    found = estimate.parts(config)
    assert estimate.Judged.of(config, found) is None
    (tmp_path / "p.md").write_text("Grade {question} {response}")
    asking = config.model_copy(
        update={
            "judge": "openai/gpt-4.1",
            "judging": config.judging.model_copy(update={"prompt": str(tmp_path / "p.md")}),
        }
    )
    judged = estimate.Judged.of(asking, found)
    assert judged is not None
    assert judged.calls == 44 + 3 * (12 + 12)
    # each answer once; where implicit recovery is asked for, two thirds of it again
    answers = 44 * 48 + 24 * 48 * 5 // 3
    longest = max(map(estimate_tokens, load_prompts(config.prompts).questions))
    template = estimate_tokens("Grade {question} {response}")
    assert judged.tokens == answers + judged.calls * (template + longest)
    assert "116 calls" in str(judged)
    hostile = asking.model_copy(
        update={"judging": config.judging.model_copy(update={"prompt": "none.md"})}
    )
    with pytest.raises(UserError, match=r"none\.md"):
        estimate.Judged.of(hostile, found)


def test_a_run_asks_its_judge_no_oftener_than_planned(tmp_path: Path) -> None:
    config = small(tmp_path / "run")
    run(config)
    judged = estimate.Judged.of(config.model_copy(update={"judge": "self"}), estimate.parts(config))
    assert judged is not None
    with Store.open(config.place, mode="ro") as store:
        asked = [len(store.verdicts(j)) * (1 + j.endswith("/thirds")) for j in store.judges()]
    assert 0 < sum(asked) <= judged.calls


def test_the_command_says_hours_and_mistakes() -> None:
    said = CliRunner().invoke(
        app, ["plan", "organism-resister", "--rate", "1000", "--engines", "2", "--json"]
    )
    told = json.loads(said.stdout)
    assert told["gpu_hours"] == pytest.approx(2 * told["hours"])
    both = ["plan", "organism-resister", "--rate", "1", "--measured", "x"]
    assert isinstance(CliRunner().invoke(app, both).exception, UserError)
    assert "in all" in CliRunner().invoke(app, ["plan", "organism-resister"]).stdout
