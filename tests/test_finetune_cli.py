"""`steerback finetune` from rows to a model that a run takes, and the mistakes one can make."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import small

from steerback import organism
from steerback.cli import main
from steerback.run import run


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that the command says before it exits with code 2."""
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in ("finetune", *arguments)])
    assert stopped.value.code == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ")
    assert "\n" not in said
    return said


def test_from_rows_to_a_model_that_a_run_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, made = tmp_path / "rows.jsonl", tmp_path / "tuned"
    main(["finetune", "data", str(rows), "--organism", "--count", "120", "--corrections", "0.6"])
    assert "self-corrections" in capsys.readouterr().out
    training = ["finetune", "train", "organism-naive", str(rows), "--out", str(made)]
    main([*training, "--settings", "organism", "--under-steering", "--strength", "0.2:0.6"])
    assert "loads like any model" in capsys.readouterr().out
    config = small(tmp_path / "run", "naive", model={"name": "tuned", "path": str(made / "merged")})
    found = run(config)
    assert found["esr"].summaries[0].n > 0
    assert found["esr"].summaries[0].model == "tuned"


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    assert "--from FILE" in refused(capsys, "data", rows)
    assert "cannot be read" in refused(capsys, "data", rows, "--from", tmp_path / "none.jsonl")
    main(["finetune", "data", str(rows), "--organism", "--count", "30"])
    assert "exists" in refused(capsys, "data", rows, "--organism")
    out = ("--out", tmp_path / "tuned")
    train = ("train", "organism-naive", rows, *out)
    assert "published" in refused(capsys, *train, "--settings", "publishd")
    assert "--under-steering" in refused(capsys, *train, "--full", "--target", "clean")
    assert "two numbers" in refused(capsys, *train, "--under-steering", "--strength", "high")
    assert "steering.directions" in refused(
        capsys, *train, "--under-steering", "--directions", "up"
    )
    assert "steering.vectors" in refused(
        capsys, *train, "--full", "--under-steering", "--directions", "vectors"
    )
    assert "did you mean 'organism-naive'" in refused(capsys, "train", "organism-naiv", rows, *out)
    plain = ("train", organism.path("naive"), rows, *out, "--full", "--under-steering")
    assert "without an SAE" in refused(capsys, *plain)
    assert "--layer" in refused(capsys, *plain, "--directions", "random")
    assert "layer 9 does not exist" in refused(
        capsys, *plain, "--directions", "random", "--layer", 9
    )
    evaluated = tmp_path / "evaluated.jsonl"
    question = "How do you solve a quadratic equation by completing the square?"
    evaluated.write_text(
        f'{{"text": "{question}\\nNo.", "spans": {{"prompt": [0, {len(question)}], '
        f'"answer": [{len(question) + 1}, {len(question) + 4}]}}}}\n',
        "utf-8",
    )
    said = refused(capsys, "train", "organism-naive", evaluated, *out)
    assert "row 1 asks" in said
    assert "heldout" in said


def test_a_folder_without_an_sae_is_trained_along_random_directions(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    main(["finetune", "data", str(rows), "--organism", "--count", "40"])
    train = ["finetune", "train", str(organism.path("naive")), str(rows), "--settings", "organism"]
    steered = ["--under-steering", "--directions", "random", "--layer", "1", "--layer", "2"]
    main([*train, *steered, "--out", str(tmp_path / "tuned")])
    assert (tmp_path / "tuned" / "merged" / "config.json").is_file()


def test_adapters_without_their_package_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "rows.jsonl"
    main(["finetune", "data", str(rows), "--organism", "--count", "30"])
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    said = refused(capsys, "train", "organism-naive", rows, "--out", tmp_path / "tuned")
    assert "pip install 'steerback[finetune]'" in said
