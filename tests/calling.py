"""The command line as a test calls it."""

from __future__ import annotations

import pytest

from steerback.cli import main


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    capsys.readouterr()
    try:
        main([str(w) for w in words])
        code = 0
    except SystemExit as leave:
        code = int(leave.code or 0)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line that a mistake is answered with, at exit code 2."""
    code, _, complaint = call(capsys, *words)
    assert code == 2
    assert len(complaint.strip().splitlines()) == 1
    assert "Traceback" not in complaint
    return complaint
