"""The numbers of runs, read back from their folders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from steerback import protocols
from steerback.errors import UserError, nearest
from steerback.judge.base import judges_whole
from steerback.run import analyse
from steerback.stats import Summary
from steerback.store import Store

FILE = "run.sqlite"


def run_folders(folders: Iterable[Path]) -> list[Path]:
    """The runs in or below these folders, in order, each once. Raises UserError where there is none."""
    found: dict[Path, Path] = {}
    for folder in folders:
        here = sorted(p.parent for p in folder.rglob(FILE)) if folder.is_dir() else []
        if not here:
            raise UserError(f"{folder}: no run here (no {FILE} in or below it)")
        for place in here:
            found.setdefault(place.resolve(), place)
    return list(found.values())


def common_folder(places: Sequence[Path]) -> Path:
    """The deepest folder that holds all of them; of one, that one."""
    return Path(os.path.commonpath([p.resolve() for p in places])) if len(places) > 1 else places[0]


def known_protocols(store: Store) -> list[str]:
    """Names of the protocols of the run that this version can analyse: those of its configuration and
    those that they need, in the order in which they run; they may have findings without trials. Then
    others with trials."""
    known = protocols.registry()
    listed = [name for name in store.config.get("protocols", []) if name in known]
    stored = [name for name in sorted({c.protocol for c in store.counts()}) if name in known]
    return list(dict.fromkeys([*protocols.with_needs(listed), *stored]))


def check_judge(store: Store, judge: str) -> None:
    """Raises UserError unless `judge` is empty or has verdicts in the run."""
    known = [name for name in store.judges() if judges_whole(name)]
    if judge and judge not in known:
        raise UserError(f"{store.folder}: no verdicts of judge {judge!r}; {nearest(judge, known)}")


def summaries(folders: Iterable[Path], judge: str = "") -> list[Summary]:
    """One summary per run, protocol, arm and model."""
    found: list[Summary] = []
    for folder in run_folders(folders):
        with Store.open(folder, mode="ro") as store:
            check_judge(store, judge)
            for analysis in analyse(store, known_protocols(store), judge).values():
                found += analysis.summaries
    return found
