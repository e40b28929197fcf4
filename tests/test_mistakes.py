"""Wrong inputs: each is one line that says what and where, and leaves nothing half made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from calling import call, refused
from runs import small

from steerback import protocols
from steerback.database import FILE
from steerback.errors import UserError
from steerback.presets import load
from steerback.run import run
from steerback.store import Store
from steerback.ui import Ui
from steerback.vectors import VectorSet

KEYS = ("OPENAI_API_KEY", "OPENAI_BASE_URL")


class Heard(Ui):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def stage(self, title: str) -> None:
        self.lines.append(title)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("mistakes") / "run"
    run(small(place))
    return place


# --- files that are not what they should be ---------------------------------------------------

ON_A_RUN = (
    ("status", "RUN"),
    ("report", "RUN"),
    ("export", "RUN", "--to", "csv"),
    ("crossjudge", "RUN"),
    ("crossjudge", "RUN", "--judges", "exact"),
    ("organism", "truths", "RUN"),
    ("replay", "RUN", "ab"),
)


@pytest.mark.parametrize("content", [b"", b"no database " * 40], ids=["empty", "foreign"])
@pytest.mark.parametrize("words", ON_A_RUN, ids=" ".join)
def test_a_foreign_file_is_refused_and_left_alone(
    words: tuple[str, ...], content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / FILE).write_bytes(content)
    said = refused(capsys, *(str(tmp_path) if w == "RUN" else w for w in words))
    assert "not a steerback run" in said
    assert [p.name for p in tmp_path.iterdir()] == [FILE]
    assert (tmp_path / FILE).read_bytes() == content


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("organism", "truths"), "no configuration is stored"),
        (("report",), "nothing to report"),
        (("crossjudge", "--judges", "exact"), "nothing is judged"),
    ],
)
def test_a_run_without_anything_is_one_line(
    words: tuple[str, ...], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Store.open(tmp_path / "run").close()
    assert says in refused(capsys, *words, tmp_path / "run")


@pytest.mark.parametrize(
    "words",
    [
        ("init", "organism-resister", "--to", "FILE"),
        ("finetune", "data", "FILE", "--organism", "--count", "20"),
        ("vectors", "make", "FILE", "--model", "organism-resister"),
    ],
    ids=lambda words: words[0],
)
def test_a_file_in_no_folder_is_refused_before_the_work(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "none" / "x"
    said = refused(capsys, *(file if w == "FILE" else w for w in words))
    assert f"there is no folder {file.parent}" in said
    assert not file.parent.exists()


def test_a_damaged_run_gets_no_lock(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = bytearray((finished / FILE).read_bytes())
    third = len(whole) // 3
    whole[third : 2 * third] = b"\xff" * third
    (tmp_path / FILE).write_bytes(whole)
    assert "is damaged" in refused(capsys, "crossjudge", tmp_path, "--judges", "dry")
    assert not (tmp_path / "run.lock").exists()


# --- a run that cannot be made leaves nothing -------------------------------------------------


def _vectors(tmp_path: Path, value: float) -> dict[str, Any]:
    rows = torch.ones(3, 128)
    rows[1] = value
    file = tmp_path / "v.safetensors"
    VectorSet("v", rows).save(file)
    return {"directions": {"vectors": str(file), "count": 2}}


def _prompts(tmp_path: Path, *questions: str) -> dict[str, Any]:
    file = tmp_path / "questions.txt"
    file.write_text("\n".join(questions), "utf-8")
    return {"prompts": str(file)}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (lambda p: _prompts(p, "How do I compile the function?"), "holds one question"),
        (lambda p: _vectors(p, 0.0), "vector 1 has the length 0"),
        (lambda p: _vectors(p, float("nan")), "vector 1 has the length nan"),
        (lambda p: {"sae": {"layer": 99}}, "sae.layer: layer 99 does not exist"),
        (lambda p: {"model": {"readout_layer": 99}}, "model.readout_layer: layer 99"),
        (lambda p: {"judging": {"prompt": "nope.md"}}, "nope.md: cannot be read"),
        (lambda p: {"judge": "foo/bar"}, "judge foo/bar"),
        (lambda p: {"model": {"path": "./nope"}}, "there is no model folder ./nope"),
    ],
    ids=["one question", "zero", "nan", "sae layer", "readout", "prompt", "judge", "path"],
)
def test_a_run_that_cannot_begin_leaves_no_folder(changes: Any, says: str, tmp_path: Path) -> None:
    config = small(tmp_path / "run", **changes(tmp_path))
    with pytest.raises(UserError, match=says):
        run(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_has_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'cuda' cannot be used: .*; use cpu$"):
        run(small(tmp_path / "run", model={"device": "cuda"}))
    assert not (tmp_path / "run").exists()


def test_a_missing_key_shows_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in KEYS:
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr("steerback.lab.load_engine", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(UserError, match=r"OPENAI_API_KEY.*or name another judge"):
        run(small(tmp_path / "run", judge="openai/gpt-4.1"))
    assert not (tmp_path / "run").exists()


def test_a_training_without_rows_leaves_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("finetune", "train", "organism-naive", tmp_path / "nope.jsonl", "--out")
    assert "nope.jsonl: cannot be read" in refused(capsys, *words, tmp_path / "o")
    assert not (tmp_path / "o").exists()


# --- too few directions -----------------------------------------------------------------------


def test_a_judge_that_scores_nothing_is_named_with_its_reason(tmp_path: Path) -> None:
    config = small(tmp_path / "run", **_prompts(tmp_path, "Who are you?", "What is it worth?"))
    with pytest.raises(UserError, match=r"'exact' could score none of \d+ .*topic is unknown"):
        run(config)


def _labels(tmp_path: Path, *rows: str) -> dict[str, Any]:
    file = tmp_path / "labels.csv"
    file.write_text("\n".join(("index_in_sae,label,concreteness", *rows)), "utf-8")
    return {"labels": str(file), "relevance": "none"}


def test_no_direction_left_says_where_they_went(tmp_path: Path) -> None:
    wanted = _labels(tmp_path, "99999,fishing,90")
    heard = Heard()
    with pytest.raises(UserError, match=r"none is left to steer with .*concreteness: 0"):
        run(small(tmp_path / "run", directions=wanted), heard)
    assert any("does not have (99999; it has" in line for line in heard.lines)
    assert not (tmp_path / "run").exists()


def test_fewer_directions_than_wanted_are_said(tmp_path: Path) -> None:
    heard = Heard()
    run(small(tmp_path / "run", directions={"indices": [40]}), heard)
    assert not any("wanted" in line for line in heard.lines)
    wanted = {**_labels(tmp_path, "40,fishing,90"), "count": 3}
    run(small(tmp_path / "other", directions=wanted), heard)
    assert any(line.startswith("1 of 3 directions wanted (") for line in heard.lines)


def test_strengths_out_of_reach_are_an_error_with_the_reasons(tmp_path: Path) -> None:
    search = {"rounds": 1, "prompts_per_round": 1, "fresh": 1, "mean": 0.01, "upper": 0.02}
    with pytest.raises(UserError, match=r"no direction reaches a first-attempt score of 30: .+;"):
        run(small(tmp_path / "run", directions={"count": 1}, calibration={**search, "sd": 0.01}))


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (("xx,fishing,90",), "line 2: index_in_sae is 'xx'; write a whole number"),
        (("3,fishing,much",), "line 2: concreteness is 'much'; write a number"),
        (('3,"fishing,90', "4,woodwork,90"), "cannot be read as a CSV file"),
    ],
)
def test_labels_that_cannot_be_read(rows: tuple[str, ...], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        run(small(tmp_path / "run", directions=_labels(tmp_path, *rows)))
    assert not (tmp_path / "run").exists()


# --- configurations ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('name = "organism-resister"', 'name = "../../evil/a"', "no plain file name"),
        ('name = "organism-resister"', 'name = ".."', "no plain file name"),
        ('["baseline", "esr"]', '["esr", "esr"]', "'esr' is there more than once"),
        ('["baseline", "esr"]', "[]", "protocols is []; it should not be empty"),
        ('device = "auto"', 'device = "gpu"', "model.device is 'gpu'; allowed: auto (a GPU"),
        ('kind = "hf"', 'kind = "jax"', "engine.kind is 'jax'; allowed: What generates"),
        ("upper = 2.0", "upper = 0.1", "calibration.upper is 0.1; it should be at least the mean"),
    ],
)
def test_a_value_that_cannot_be_meant_is_named(
    old: str, new: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.toml"
    call(capsys, "init", "organism-resister", "--to", file)
    text = file.read_text("utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), "utf-8")
    said = refused(capsys, "run", file)
    assert says in said
    assert f"{file}:" in said


def test_any_name_will_do_where_the_folder_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.toml"
    call(capsys, "init", "organism-resister", "--to", file)
    text = file.read_text("utf-8").replace('name = "organism-resister"', 'name = "a/b"', 1)
    file.write_text(text.replace('folder = ""', 'folder = "x"'), "utf-8")
    assert load(file, protocols.settings()).place == Path("x")


# --- words on the command line ----------------------------------------------------------------

STEER = ("steer", "organism-resister", "How?", "--strength", "1", "--latent")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((*STEER, "1", "--layer", "-5"), "--layer"),
        ((*STEER, "1", "--readout-layer", "-5"), "--readout-layer"),
        (("init", "foo/bar", "--sae", "x", "--layer", "-7"), "--layer"),
        ((*STEER[:-1], "--latent=-1"), "-1"),
        (("power", "0", "0.5"), "BEFORE is 0"),
        (("power", "0.5", "1"), "AFTER is 1"),
        (("power", "0.5", "0.5"), "no change to see"),
    ],
)
def test_numbers_that_cannot_be_meant(
    words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(capsys, *words)


def test_text_of_the_user_is_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "status", "zz:smile:[b]x[-1]:-1:")
    assert "zz:smile:[b]x[-1]:-1:" in said
    from steerback.commands.options import out

    out.print("pip install 'steerback[finetune]' :smile:")
    assert "steerback[finetune]' :smile:" in capsys.readouterr().out


def test_ctrl_c_says_that_what_is_finished_is_stored(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("steerback.status.describe", interrupted)
    code, _, said = call(capsys, "status", "anything")
    assert code == 130
    assert "the same command goes on from there" in said


# --- human labels -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"first": "150"}, "first is '150' and multi is empty"),
        ({"first": "high"}, "first is 'high' and multi is empty"),
        ({"multi": "yes", "first": "-5"}, "first is '-5'; write a number from 0 to 100"),
        ({}, "no row is labelled"),
    ],
)
def test_a_sheet_that_grades_nothing_becomes_no_judge(
    row: dict[str, str],
    says: str,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sheet = tmp_path / "s.csv"
    assert call(capsys, "crossjudge", finished, "--sheet", sheet)[0] == 0
    head, first, *rest = sheet.read_text("utf-8").splitlines(keepends=True)
    if row:
        filled = [row.get(name, "") for name in ("multi", "first", "last")]
        first = first.rstrip("\r\n").removesuffix(",,,") + "," + ",".join(filled) + "\r\n"
    sheet.write_text("".join((head, first, *rest)), "utf-8", newline="")
    assert says in refused(capsys, "crossjudge", finished, "--human", sheet)
    with Store.open(finished, mode="ro") as store:
        assert "human:s" not in str(store.get_artifact("crossjudge"))


def test_a_dry_run_needs_no_key(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for key in KEYS:
        monkeypatch.delenv(key, raising=False)
    words = (
        "crossjudge",
        finished,
        "--dry-run",
        "--judges",
        "openai/gpt-4.1,anthropic/claude-haiku-4-5,exact",
    )
    code, text, _ = call(capsys, *words)
    assert code == 0
    assert text.count("calls") == 2
