"""Several judges on one sample: who is asked what, what they agree on, and where it is shown."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from report_runs import WAIT, invented, make_trial, say
from scipy.stats import pearsonr
from typer.testing import CliRunner

from steerback.cli import app
from steerback.crossjudge import agreement
from steerback.crossjudge.grades import Grade, read_sheet
from steerback.crossjudge.regrade import Wanted, blank_sheet, estimate, regrade, sample_of
from steerback.errors import UserError
from steerback.judge.base import Request
from steerback.judge.segment import segment
from steerback.records import Records
from steerback.report.page import write_report
from steerback.stats import correlation
from steerback.store import Store
from steerback.types import Attempt, Verdict

CANARY = "canary-91ce04b7d2f6a"


class Fake:
    """Splits like `segment`; scores 30 and then 70; `odd` names trials it sees otherwise."""

    def __init__(self, name: str, odd: Sequence[str] = (), failing: Sequence[str] = ()) -> None:
        self.name, self.odd, self.failing = name, set(odd), set(failing)
        self.asked: list[str] = []

    def judge(self, requests: Sequence[Request]) -> list[Verdict]:
        self.asked += [r.trial_key for r in requests]
        return [self._verdict(r) for r in requests]

    def _verdict(self, r: Request) -> Verdict:
        if r.trial_key in self.failing:
            return Verdict(r.trial_key, self.name, (), "error", "no answer")
        starts = [0] if r.trial_key in self.odd else segment(r.response)
        ends = [*starts[1:], len(r.response)]
        scores = [30.0, *[70.0] * (len(starts) - 1)]
        spans = zip(starts, ends, scores, strict=True)
        return Verdict(r.trial_key, self.name, tuple(Attempt(*s) for s in spans), "ok")


def quiet(line: str) -> None:
    assert "\n" not in line


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return invented(tmp_path / "run")


def restarted(folder: Path) -> list[str]:
    with Store.open(folder, mode="ro") as store:
        _, sample = sample_of(store, 0, 0)
        return [r.trial.key for r in sample]


def test_all_restarts_and_as_many_of_the_others_are_regraded(folder: Path) -> None:
    with Store.open(folder, mode="ro") as store:
        records = Records(store)
        everything = [r for p in ("esr", "baseline") for r in records.of(p)]
        _, sample = sample_of(store, 12, 0)
        again = sample_of(store, 12, 0)[1]
        other = sample_of(store, 12, 1)[1]
    several = {r.trial.key for r in everything if WAIT in r.generation.text}
    keys = [r.trial.key for r in sample]
    assert several <= set(keys)
    assert len(keys) == len(several) + 12
    arms = [r.trial.protocol for r in sample if r.trial.key not in several]
    assert (arms.count("esr"), arms.count("baseline")) == (6, 6)
    assert keys == [r.trial.key for r in again] != [r.trial.key for r in other]


def test_a_restart_that_the_run_s_judge_missed_is_in_the_sample(folder: Path) -> None:
    trial = make_trial(999)
    text = f"Lay it flat. {WAIT} Fold it."
    with Store.open(folder) as store:
        store.add([(trial, say(trial, text))])
        store.add_verdicts([Verdict(trial.key, "exact", (Attempt(0, len(text), 9.0),), "ok")])
    assert trial.key in restarted(folder)


def test_a_second_run_asks_about_errors_and_nothing_else(folder: Path) -> None:
    keys = restarted(folder)
    first = Fake("b", failing=keys[:2])
    wanted = Wanted(("b",), per_model=5)
    with Store.open(folder) as store:
        regrade(store, wanted, lambda spec: first, quiet)
    assert len(first.asked) == len(keys) + 5
    second = Fake("b")
    with Store.open(folder) as store:
        regrade(store, wanted, lambda spec: second, quiet)
        assert all(store.verdicts("b")[k].status == "ok" for k in keys)
    assert second.asked == sorted(keys[:2])


def test_a_dry_run_asks_and_stores_nothing(folder: Path) -> None:
    judge = Fake("b")
    with Store.open(folder) as store:
        [line] = estimate(store, Wanted(("b",), per_model=5), lambda spec: judge)
        assert store.get_artifact("crossjudge") is None
    assert line == f"b: {len(restarted(folder)) + 5} responses"
    assert judge.asked == []


def test_agreement_is_counted_by_hand(folder: Path) -> None:
    keys = restarted(folder)
    b, c = Fake("b"), Fake("c", odd=keys[:4])
    with Store.open(folder) as store:
        regrade(store, Wanted(("b", "c"), per_model=20), {"b": b, "c": c}.__getitem__, quiet)
        panel = agreement.read_panel(store)
        sheets = {s.title: s for s in agreement.analyse(store).sheets}
    assert panel is not None
    assert panel.judges == ("exact", "b", "c")
    n = len(keys) + 20
    pairs = {row[0]: row for row in sheets["Each two judges"].rows}
    agreed = pairs["b / c"][2]
    assert (agreed.k, agreed.n) == (n - 4, n)
    table = np.array([[20, 0], [4, len(keys) - 4]]) / n
    chance = table.sum(0) @ table.sum(1)
    assert pairs["b / c"][3].value == pytest.approx((np.trace(table) - chance) / (1 - chance))
    both = [(x.first, y.first) for _, x, y in panel.pairs("exact", "b")]
    assert len(set(both)) > 1
    assert pairs["exact / b"][7] is None, "b gives every first attempt the same score"
    fleiss = sheets["All 3 judges"].rows[0]
    assert fleiss[2].n == fleiss[1] == len(panel.pairs("exact", "b"))
    assert 0 < fleiss[3].value < 1
    confusion = {row[0]: row[1:] for row in sheets["b (rows) against c (columns)"].rows}
    assert confusion["improved"] == (4, len(keys) - 4)
    differ = sheets["Trials on which judges differ"].rows
    assert {k.key for k, *_ in differ} >= set(keys[:4])


def test_what_was_compared_stays_until_the_sample_changes(folder: Path) -> None:
    def judges() -> list[str]:
        with Store.open(folder, mode="ro") as store:
            return store.get_artifact("crossjudge")["judges"]

    for spec, per_model in (("b", 5), ("c", 5)):
        with Store.open(folder) as store:
            regrade(store, Wanted((spec,), per_model=per_model), Fake, quiet)
    assert judges() == ["exact", "b", "c"]
    with Store.open(folder) as store:
        regrade(store, Wanted(("c",), per_model=6), Fake, quiet)
    assert judges() == ["exact", "c"]


def test_the_report_still_shows_the_run_s_own_judge(folder: Path) -> None:
    """A judge that graded every trial too, and whose name comes first, does not take its place."""
    with Store.open(folder) as store:
        regrade(store, Wanted(("a",), per_model=10_000), Fake, quiet)
        assert store.judges()[:2] == ["exact", "a"] or len(store.verdicts("a")) < len(
            store.verdicts("exact")
        )
        assert Records(store).judge == "exact"


# --- human labels, the command line, the report ------------------------------------------------


def cli(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def labelled(folder: Path, sheet: Path) -> Path:
    """The sheet filled in as the phrase list would, with one disagreement."""
    cli("crossjudge", folder, "--per-model", 10, "--sheet", sheet)
    rows = list(csv.DictReader(sheet.open(encoding="utf-8", newline="")))
    for n, row in enumerate(rows):
        again = WAIT in row["response"] and n != 0
        row |= {"multi": "yes" if again else "no", "first": "20", "last": "60" if again else ""}
    with sheet.open("w", encoding="utf-8", newline="", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return sheet


def test_a_human_is_one_more_judge(folder: Path, tmp_path: Path) -> None:
    sheet = labelled(folder, tmp_path / "anna.csv")
    found = json.loads(cli("crossjudge", folder, "--per-model", 10, "--human", sheet, "--json"))
    tables = {t["title"]: t["rows"] for t in found[0]["tables"]}
    assert [row["judge"] for row in tables["The judges"]] == ["exact", "human:anna"]
    [pair] = tables["Each two judges"]
    assert pair["judges"] == "exact / human:anna"
    assert pair["agree on several attempts"]["rate"] > 0.9
    assert json.loads(cli("crossjudge", folder, "--json")) == found
    assert "Each two judges" in cli("crossjudge", folder)


def test_the_report_links_disagreements_to_transcripts(folder: Path, tmp_path: Path) -> None:
    odd = restarted(folder)[0]
    with Store.open(folder) as store:
        regrade(store, Wanted(("<b>",)), lambda spec: Fake(spec, odd=[odd]), quiet)
    html = write_report([folder], tmp_path / "page.html").path.read_text("utf-8")
    assert f'<a href="#trial-{odd}"><code>{odd[:12]}</code></a>' in html
    assert "Would other judges, or people, have told the same story?" in html
    assert "&lt;b&gt;" in html
    assert "<b>" not in html


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{key},perhaps,,", "row 2: multi is 'perhaps'; write yes or no"),
        ("{key},yes,101,", "row 2: first is '101'; write a number from 0 to 100"),
        ("{key},yes,high,3", "row 2: first is 'high'"),
        ("nokey,yes,1,2", "row 2: no trial of the sample begins with 'nokey'"),
        (",yes,1,2", "row 2: no trial of the sample begins with ''"),
        ("{key},yes,1,2\n{key},no,,", "row 3: trial .* is labelled twice"),
    ],
)
def test_a_mistake_in_a_sheet_is_named(tmp_path: Path, row: str, message: str) -> None:
    file = tmp_path / "h.csv"
    file.write_text("key,multi,first,last\n" + row.format(key="ab12"), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_sheet(file, ["ab12", "cd34"])


def test_rows_without_an_answer_are_not_labels(tmp_path: Path) -> None:
    file = tmp_path / "h.csv"
    file.write_text("\ufeffkey,multi,first,last\nab,,,\ncd,No,40,\n", encoding="utf-8")
    assert read_sheet(file, ["ab12", "cd34"]) == {"cd34": Grade(False, 40.0, 40.0)}
    file.write_text("key,answer\n", encoding="utf-8")
    with pytest.raises(UserError, match="no column 'multi'"):
        read_sheet(file, [])


def test_a_sheet_is_not_written_over(folder: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "h.csv"
    sheet.write_text("labels", encoding="utf-8")
    with Store.open(folder, mode="ro") as store, pytest.raises(UserError, match="exists; choose"):
        blank_sheet(store, Wanted(), sheet)
    assert sheet.read_text("utf-8") == "labels"


def test_a_run_with_one_judge_says_what_to_do(folder: Path) -> None:
    with pytest.raises(UserError, match="only one judge so far; name others with --judges"):
        CliRunner().invoke(app, ["crossjudge", str(folder)], catch_exceptions=False)


@pytest.mark.filterwarnings("ignore:The 'initial' parameter:DeprecationWarning")
def test_a_provider_by_the_command_line_and_no_key_left_behind(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for needed in ("inspect_ai", "openai"):
        pytest.importorskip(needed)
    from fake_provider import Faults, Reply, served

    class Plain(Faults):
        def reply(self, prompt: str) -> Reply:
            self.calls += 1
            response = prompt.partition("R>>")[2].partition("<<")[0]
            text = json.dumps({"attempts": [{"text": response[:30], "score": 40}]})
            return Reply(401, f"wrong key {CANARY}") if "6?" in prompt else Reply(200, text)

    monkeypatch.setenv("LOCAL_API_KEY", CANARY)
    prompt = tmp_path / "mine.md"
    prompt.write_text("Q {question} R>>{response}<<", encoding="utf-8")
    model = ["--judges", "openai-api/local/m", "--judge-prompt", prompt, "--per-model", 10]
    with served(Plain(0)) as (url, seen):
        dry = cli("crossjudge", folder, *model, "--base-url", url, "--dry-run")
        assert " calls, about " in dry
        assert "prompt tokens" in dry
        assert seen == set()
        found = cli("crossjudge", folder, *model, "--base-url", url, "--calls", 60)
        assert seen == {f"Bearer {CANARY}"}
    with Store.open(folder, mode="ro") as store:
        asked = store.get_artifact("crossjudge")["judges"][1]
        assert {v.status for v in store.verdicts(asked).values()} == {"ok", "error"}
    page = write_report([folder], tmp_path / "page.html").path
    kept = [p for p in (*folder.rglob("*"), page) if p.is_file()]
    assert len(kept) >= 3
    assert not [p for p in kept if CANARY.encode() in p.read_bytes()]
    assert CANARY not in dry + found + cli("crossjudge", folder, "--json")


def test_a_run_takes_a_judge_prompt_by_the_command_line(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    cli("init", "organism-imitator", "--to", config)
    text = config.read_text("utf-8").replace('judge = "exact"', 'judge = "self"')
    config.write_text(text.replace('folder = ""', f'folder = "{tmp_path / "r"}"'), encoding="utf-8")
    with pytest.raises(UserError, match=r"none\.md: cannot be read"):
        CliRunner().invoke(
            app, ["run", str(config), "--judge-prompt", "none.md"], catch_exceptions=False
        )


def test_correlation_is_pearson_s_and_its_interval_holds_the_truth() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=300)
    y = 0.6 * x + 0.8 * rng.normal(size=300)
    found = correlation(50 + 10 * x, 40 + 3 * y, [str(i // 3) for i in range(300)])
    assert found.value == pytest.approx(pearsonr(x, y).statistic)
    assert found.low < 0.6 < found.high
    assert (found.n, found.clusters) == (300, 100)
    assert np.isnan(correlation(np.ones(9), rng.normal(size=9)).value)
    order = random.Random(1).sample(range(300), 300)
    names = [str(i // 3) for i in order]
    assert correlation(50 + 10 * x[order], 40 + 3 * y[order], names).low == pytest.approx(found.low)
