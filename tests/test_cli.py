"""The command line as a user meets it: what it prints, and what it says to mistakes."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from calling import call
from rich.console import Console
from runs import small

import steerback
from steerback import protocols
from steerback.cli import main
from steerback.presets import load
from steerback.run import run
from steerback.store import Store
from steerback.vectors import VectorSet


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("cli") / "run"
    run(small(place))
    return place


def test_report_json_has_the_promised_shape(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text, _ = call(capsys, "report", str(folder), "--json")
    rows = [row for row in json.loads(text) if row["kind"] == "arm"]
    assert code == 0
    assert {r["protocol"] for r in rows} == {"baseline", "esr"}
    for row in rows:
        assert {"arm", "model", "n", "clusters", "missing"} <= row.keys()
        for rate in ("multi_attempt", "esr", "cond_improvement", "chance_improvement"):
            assert row[rate].keys() == {"rate", "low", "high"}


def test_status_says_what_is_left(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = call(capsys, "status", str(folder), "--json")
    facts = json.loads(text)
    assert code == 0
    left = {p["protocol"]: p["left"] for p in facts["protocols"]}
    assert left == {"calibration": 0, "baseline": 0, "esr": 0}
    assert call(capsys, "status", str(folder))[0] == 0


def test_init_writes_what_run_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.toml"
    assert call(capsys, "init", "organism-resister", "--to", str(file))[0] == 0
    assert load(file, protocols.settings()).model.name == "organism-resister"
    code, _, complaint = call(capsys, "init", "organism-resister", "--to", str(file))
    assert code == 2
    assert "exists" in complaint


def test_steer_streams_and_says_what_it_added(capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = call(
        capsys,
        "steer",
        "organism-resister",
        "How do I compile the recursive function?",
        *("--latent", "1", "--strength", "0.4", "--unit", "resid", "--compare"),
        *("--max-new-tokens", "24", "--watch", "1"),
    )
    assert code == 0
    assert "unsteered" in text
    assert "adds latent 1 (programming), 0.4 median residual norms, to every generated" in text
    assert text.count("latent 1, at most") == 2


def test_steer_colours_the_tokens_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, color_system="256", width=80)
    monkeypatch.setattr("steerback.commands.asking.out", terminal)
    words = ["--latent", "40", "--strength", "0.4", "--unit", "resid", "--max-new-tokens", "12"]
    main(["steer", "organism-resister", "How do I wrap the raw eel?", *words])
    assert "latent 40, at most" in shown.getvalue()
    assert "\x1b[48;5;196m" in shown.getvalue(), "the most active token"


@pytest.mark.parametrize("words", [("doctor",), ("models",), ("organism", "list"), ("--help",)])
def test_verbs_that_only_tell(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = call(capsys, *words)
    assert code == 0
    assert text.strip()


def test_power_table_names_the_smallest_design(capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = call(capsys, "power", "0.3", "0.1")
    assert code == 0
    assert "trials per arm" in text


STEER = ("steer", "organism-resister", "How?", "--strength", "1")
MISTAKES = [
    (("run", "nowhere.toml"), "nowhere.toml"),
    (("report", "nowhere"), "no run here"),
    (("status", "nowhere"), "nowhere"),
    (("export", "nowhere", "--to", "csv"), "no run here"),
    (("steer", "organism-resister", " ", "--latent", "1", "--strength", "1"), "question is empty"),
    (("init", "organism-resistor"), "did you mean 'organism-resister'"),
    (("steer", "some/model", "How?", "--latent", "1", "--strength", "1"), "--sae and --layer"),
    ((*STEER, "--latent", "100000"), "no latent 100000"),
    ((*STEER, "--latent", "1", "--layer", "9"), "layers 0 to 3"),
    ((*STEER, "--latent", "1", "--positions", "some"), "from:N"),
    ((*STEER, "--latent", "1", "--unit", "norm"), "'raw' or 'resid'"),
    ((*STEER, "--latent", "1", "--max-new-tokens", "5000"), "context of"),
    ((*STEER, "--latent", "1", "--dtype", "int3"), "dtype is 'int3'"),
    ((*STEER, "--latent", "1", "--temperature", "-1"), "temperature"),
    (("steer", "organism-resister", "How?"), "Missing option"),
    (("power", "0.3", "1.7"), "1.7"),
    (("fly",), "No such command"),
]


@pytest.mark.parametrize(("words", "says"), MISTAKES)
def test_a_mistake_is_one_line_and_code_2(
    words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, complaint = call(capsys, *words)
    assert code == 2
    assert says in complaint
    assert len(complaint.strip().splitlines()) == 1
    assert "Traceback" not in complaint


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("max_new_tokens = 96", "max_new_tokens = 0", "max_new_tokens"),
        ("[sampling]", "[sampling]\nwarmth = 3", "warmth"),
        ('"esr"', '"ers"', "did you mean 'esr'"),
        ("[sampling]", "[sampling", "not valid TOML"),
    ],
)
def test_a_mistake_in_a_configuration_names_its_line(
    old: str, new: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.toml"
    call(capsys, "init", "organism-resister", "--to", str(file))
    text = file.read_text("utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), "utf-8")
    code, _, complaint = call(capsys, "run", str(file))
    assert code == 2
    assert says in complaint
    assert str(file) in complaint
    assert len(complaint.strip().splitlines()) == 1


class Calls:
    """Calls a function when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (print, ("unpickled",))


def test_files_that_cannot_be_trusted_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "corrupt.npz").write_bytes(b"PK, and nothing more")
    torch.save({"encoder_linear.weight": Calls()}, tmp_path / "pickle.pt")
    models.sae(tmp_path / "cut", models.sae_weights())
    weights = tmp_path / "cut" / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:999])
    (tmp_path / "empty").mkdir()
    for name, says in (
        ("corrupt.npz", "not a whole npz file"),
        ("pickle.pt", "refused: it is a pickle"),
        ("cut", "not a whole safetensors file"),
        ("empty", "no SAE format recognised"),
        ("absent", "absent"),
    ):
        words = (*STEER, "--latent", "1", "--layer", "2", "--sae", str(tmp_path / name))
        code, text, complaint = call(capsys, *words)
        assert (code, text) == (2, "")
        assert says in complaint
        assert len(complaint.strip().splitlines()) == 1


def test_a_model_without_a_chat_template_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, sae = tmp_path / "model", tmp_path / "sae"
    models.build("llama").save_pretrained(model)
    models.tokenizer(template=None).save_pretrained(model)
    models.sae(sae, models.sae_weights())
    words = ["steer", str(model), "Why?", "--sae", str(sae), "--layer", "2", "--latent", "3"]
    code, _, complaint = call(capsys, *words, "--strength", "5")
    assert code == 2
    assert "has no chat template" in complaint
    assert len(complaint.strip().splitlines()) == 1


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_steer_takes_anybodys_model_and_sae(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, sae = tmp_path / "model", tmp_path / "sae"
    models.build(kind).save_pretrained(model)
    models.tokenizer().save_pretrained(model)
    models.sae(sae, models.sae_weights())
    words = ["steer", str(model), "Why?", "--sae", str(sae), "--layer", "2", "--latent", "3"]
    words += ["--strength", "5", "--watch", "9", "--max-new-tokens", "12", "--compare"]
    code, text, complaint = call(capsys, *words)
    assert (code, complaint) == (0, "")
    assert "latent 3, at most" in text
    assert "latent 9, at most" in text
    narrow = tmp_path / "narrow"
    models.sae(narrow, models.sae_weights(d_model=20))
    words[4] = str(narrow)
    code, _, complaint = call(capsys, *words)
    assert code == 2
    assert "width 20" in complaint


def test_status_names_protocols_that_have_not_begun(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {"protocols": ["baseline", "esr"], "name": "x"}
    with Store.open(tmp_path / "begun", asked):
        pass
    _, text, _ = call(capsys, "status", tmp_path / "begun")
    assert text.count("not begun") == 3
    code, text, _ = call(capsys, "status", folder)
    assert (code, "?" in text, "not begun" in text) == (0, False, False)


def test_tables_fit_80_characters_without_cut_numbers(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from steerback import overview
    from steerback.crossjudge import command
    from steerback.crossjudge.regrade import Wanted

    out = Console(width=80, file=io.StringIO(), record=True)
    overview.show(overview.entries(), out)
    text = out.export_text()
    assert "…" not in text
    assert "weights" in text
    copy = shutil.copytree(folder, tmp_path / "copy")
    work = command.Work((copy,), Wanted(("dry",), per_model=6), {}, lambda line: None)
    command.show(command.run(work), out)
    text = out.export_text()
    assert {"unscored", "several attempts", "agree on direction, where both see several"} <= {
        line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│")
    }


def test_a_plan_that_cannot_be_counted_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.toml"
    call(capsys, "init", "organism-resister", "--to", file)
    assert "without ?" not in call(capsys, "plan", file)[1]
    text = file.read_text("utf-8").replace('["baseline", "esr"]', '["esr", "detectors"]')
    file.write_text(text.partition("[settings")[0], "utf-8")
    _, said, _ = call(capsys, "plan", file)
    assert "in all, without ?" in said
    assert "the run makes more than this" in said


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "--version")[:2] == (0, f"steerback {steerback.__version__}\n")


@pytest.mark.skipif(os.name == "nt", reason="no file modes")
def test_what_is_written_may_be_read_by_others(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, vectors = tmp_path / "t.csv", tmp_path / "v.safetensors"
    before = os.umask(0o022)
    try:
        call(capsys, "export", folder, "--to", "csv", "--file", table)
        VectorSet("v", torch.eye(2)).save(vectors)
    finally:
        os.umask(before)
    for file in (table, vectors):
        assert file.stat().st_mode & 0o777 == 0o644
    assert (
        "2 vectors of width 2; the file does not say" in call(capsys, "vectors", "show", vectors)[1]
    )


def test_doctor_names_extras_and_sdks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("steerback.doctor._version", lambda package: None)
    _, text, _ = call(capsys, "doctor")
    assert "pip install 'steerback[finetune]'" in text
    assert "pip install anthropic" in text
