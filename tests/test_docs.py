"""What the documentation tells a reader to type is typed here."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from runs import small

from steerback.cli import main
from steerback.organism.corpus import topics
from steerback.run import run

ROOT = Path(__file__).parents[1]
SHORT = ("--latents", "2", "--prompts", "2")
"""Keeps the demo of the README to seconds."""


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text("utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_python_examples_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    found = blocks(page, "python")
    assert found
    for block in found:
        exec(compile(block, page, "exec"), space)


def test_what_the_page_on_runs_computes_is_what_the_report_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    found = run(small(Path("runs/demo"), protocols=["baseline", "esr"]))
    [summary] = found["esr"].summaries
    space: dict[str, object] = {}
    capsys.readouterr()
    for block in blocks("docs/runs.md", "python"):
        exec(compile(block, "docs/runs.md", "exec"), space)
    multi = summary.multi_attempt
    said = f"{multi.rate:.3f} [{multi.low:.3f}, {multi.high:.3f}] of {multi.n} trials"
    printed = capsys.readouterr().out
    assert said in printed
    assert str(summary.esr) in printed


def commands() -> list[list[str]]:
    [block] = [b for b in blocks("README.md", "") if "steerback init" in b]
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.strip()]


def test_commands_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = commands()
    assert len(found) >= 9
    for words in found:
        extra = SHORT if words[0] == "demo" else ()
        if words[0] == "run":
            _shorten(Path(words[1]))
        assert not exit_code([*words, *extra]), words


def test_the_steering_of_the_readme_shows(capsys: pytest.CaptureFixture[str]) -> None:
    """Without the push no word of the latent's topic, with it a text of that topic."""
    [words] = [words for words in commands() if words[0] == "steer"]
    [fishing] = [words for t in topics() if t.name == "fishing" for words in [t.words]]
    of_topic = {word for kind in fishing.values() for word in kind}
    assert "40" in words
    found = []
    for strength in ("0", words[words.index("--strength") + 1]):
        alone = [w for w in words if w != "--compare"]
        alone[alone.index("--strength") + 1] = strength
        capsys.readouterr()
        main(alone)
        answer = re.findall(r"│ (.*?) │", capsys.readouterr().out)
        found.append(sum(w in of_topic for w in re.findall(r"[a-z]+", " ".join(answer).lower())))
    assert found[0] <= 1
    assert found[1] >= 5


def exit_code(arguments: list[str]) -> int | str | None:
    try:
        main(arguments)
    except SystemExit as leave:
        return leave.code
    return 0


def _shorten(file: Path) -> None:
    """The same configuration with fewer latents and questions."""
    text = file.read_text("utf-8")
    for key, value in (("count", 2), ("rounds", 2), ("fresh", 4), ("prompts_per_direction", 2)):
        text, n = re.subn(rf"(?m)^#? ?{key} = \d+", f"{key} = {value}", text)
        assert n
    file.write_text(text, "utf-8")


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
