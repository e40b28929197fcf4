"""Provenance names the commit and the versions, and nothing secret."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path

import pytest

from steerback import provenance


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(
        ["git", "-C", str(folder), *who, *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_commit_is_that_of_the_checkout_and_changes_show(tmp_path: Path) -> None:
    package = tmp_path / "src"
    package.mkdir()
    (package / "provenance.py").write_text("1")
    assert provenance.git_commit(package) is None
    git(tmp_path, "init", "-q")
    assert provenance.git_commit(package) is None  # somebody else's repository around an install
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert provenance.git_commit(package) == commit
    (tmp_path / "notes.txt").write_text("beside the package")
    assert provenance.git_commit(package) == commit
    (package / "provenance.py").write_text("2")
    assert provenance.git_commit(package) == commit + "+"


def test_facts_hold_versions_but_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    facts = provenance.environment()
    told = json.dumps(facts)
    assert facts["python"] == platform.python_version()
    assert facts["pid"] == os.getpid()
    assert "numpy" in facts["packages"]
    assert "canary" not in told
    assert (platform.node() or "no name") not in told


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.git_commit(Path(provenance.__file__).parent) is None
