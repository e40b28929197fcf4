"""What a reader needs to make a run again: settings, versions, machine, hashes, sessions."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from steerback.report.gather import Run


class About(NamedTuple):
    """Tables of (name, value), ready to be printed."""

    run: Run
    settings: list[tuple[str, str]]
    facts: list[tuple[str, str]]
    """Of the latest session."""
    sessions: list[tuple[str, str, str, str]]
    """Start, end, trials added, commit."""


def about(run: Run) -> About:
    facts = run.sessions[-1].facts if run.sessions else {}
    shown = {k: v for k, v in facts.items() if k not in ("config", "pid")}
    return About(
        run,
        list(_flat(run.config)),
        [("judges with verdicts", ", ".join(run.judges) or "none"), *_flat(shown)],
        [
            (_time(s.started), _time(s.ended), f"{s.trials:,}", str(s.facts.get("commit") or "–"))
            for s in run.sessions
        ],
    )


def _flat(table: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names, in order."""
    for name, value in sorted(table.items()):
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", "not set" if value is None else str(value)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "not ended"
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
