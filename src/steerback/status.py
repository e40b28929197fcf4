"""How far a run is: what is stored, judged and left, and at what rate it grew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from steerback import protocols
from steerback.console import clock
from steerback.judge.base import judges_whole
from steerback.store import Session, Store
from steerback.types import CALIBRATION

PLANNED = "planned/"


def describe(folder: Path) -> dict[str, Any]:
    """Facts about a run, as JSON; it may be going on meanwhile."""
    with Store.open(folder, mode="ro") as store:
        planned = {
            name.removeprefix(PLANNED): store.get_artifact(name)
            for name in store.artifacts()
            if name.startswith(PLANNED)
        }
        done: dict[str, int] = {}
        verdicts: dict[str, dict[str, int]] = {}
        for count in store.counts():
            done[count.protocol] = done.get(count.protocol, 0) + count.trials
            tally = verdicts.setdefault(count.protocol, {})
            for judge, statuses in count.verdicts.items():
                if judges_whole(judge):
                    for status, n in statuses.items():
                        tally[status] = tally.get(status, 0) + n
        calibrations = store.calibrations()
        known = protocols.registry()
        asked = [name for name in store.config.get("protocols", []) if name in known]
        wanted = [CALIBRATION, *protocols.with_needs(asked)] if asked else []
        # the search is over when every direction has its calibration
        if calibrations and len(calibrations) >= len(store.get_artifact("latents", [])):
            planned.setdefault(CALIBRATION, done.get(CALIBRATION, 0))
        names = dict.fromkeys([*wanted, *sorted(done.keys() | planned.keys())])
        return {
            "folder": str(folder),
            "protocols": [
                {
                    "protocol": name,
                    "trials": done.get(name, 0),
                    "planned": planned.get(name),
                    "left": None if name not in planned else planned[name] - done.get(name, 0),
                    "judged": verdicts.get(name, {}),
                }
                for name in names
            ],
            "calibrated": sum(c.reached for c, _ in calibrations),
            "not_reached": sum(not c.reached for c, _ in calibrations),
            "trials_per_second": _rate(store.sessions()),
        }


def _rate(sessions: list[Session]) -> float | None:
    """Trials per second of the latest session that made any."""
    for session in reversed(sessions):
        if session.trials and session.last_added:
            return float(session.trials / max(session.last_added - session.started, 1e-9))
    return None


def show(facts: dict[str, Any], out: Console) -> None:
    table = Table(title=facts["folder"])
    for column in ("protocol", "done", "of", "ok", "unscored", "failed", "time left"):
        table.add_column(column, justify="left" if column == "protocol" else "right")
    rate = facts["trials_per_second"]
    for row in facts["protocols"]:
        judged, left = row["judged"], row["left"]
        if not row["trials"] and row["planned"] is None:
            table.add_row(row["protocol"], "not begun")
            continue
        wait = clock(left / rate) if left and rate else ""
        table.add_row(
            row["protocol"],
            str(row["trials"]),
            "?" if row["planned"] is None else str(row["planned"]),
            *(str(judged.get(status, 0)) for status in ("ok", "unscored", "error")),
            wait,
        )
    out.print(table)
    out.print(
        f"directions calibrated: {facts['calibrated']}, out of reach: {facts['not_reached']}"
        + (f"; {rate:.1f} trials/s" if rate else "")
    )
