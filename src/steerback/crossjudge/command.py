"""The verb `crossjudge`: runs in, tables out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from steerback.config import JudgingConfig
from steerback.crossjudge import agreement
from steerback.crossjudge.regrade import Wanted, blank_sheet, estimate, judging, labels_of, regrade
from steerback.engine.base import Engine
from steerback.errors import UserError
from steerback.judge.base import Judge
from steerback.judge.registry import make_judge
from steerback.lab import JUDGE_CACHE, load_engine
from steerback.presets import config_of
from steerback.protocols.base import Analysis, Entry, Sheet, TrialKey
from steerback.report.numbers import run_folders
from steerback.report.wording import entry
from steerback.store import Store


@dataclass(frozen=True)
class Work:
    folders: tuple[Path, ...]
    wanted: Wanted
    settings: Mapping[str, Any]
    """Those of [judging] that are not as in the run."""
    say: Callable[[str], None]


def run(work: Work) -> dict[Path, Analysis]:
    """Regrade each run; what was found, by folder. Without judges or labels: what is stored."""
    found = {}
    new = bool(work.wanted.judges or work.wanted.human)
    for folder in run_folders(work.folders):
        if new:
            with Store.open(folder, mode="extend") as store:
                regrade(store, work.wanted, _Maker(store, work), work.say)
        with Store.open(folder, mode="ro") as store:
            found[folder] = agreement.analyse(store)
        if not found[folder].sheets:
            raise UserError(
                f"{folder}: only one judge so far; name others with --judges or --human"
            )
    return found


def dry_run(work: Work) -> list[str]:
    lines = []
    for folder in run_folders(work.folders):
        with Store.open(folder, mode="ro") as store:
            lines += [
                f"{folder}: {line}"
                for line in estimate(store, work.wanted, _Maker(store, work, check=False))
            ]
    return lines


def sheet(work: Work, path: Path) -> int:
    folders = run_folders(work.folders)
    if len(folders) > 1:
        raise UserError(f"a sheet is for one run, and here are {len(folders)}; name one folder")
    with Store.open(folders[0], mode="ro") as store:
        return blank_sheet(store, work.wanted, path)


class _Maker:
    """Makes judges with the run's own settings where none are given. check: open what they ask."""

    def __init__(self, store: Store, work: Work, check: bool = True) -> None:
        self.store, self.check = store, check
        given = {**judging(store).model_dump(), **work.settings}
        try:
            self.judging = JudgingConfig.model_validate(given)
        except ValueError:
            raise UserError(f"mode is {given['mode']!r}; use verify or trust") from None

    def __call__(self, spec: str) -> Judge:
        return make_judge(
            spec,
            engine=self._engine() if spec == "self" else None,
            labels=labels_of(self.store) if spec.startswith("embed") else None,
            prompt=self.judging.prompt,
            mode=self.judging.mode,
            cap=self.judging.calls,
            base_url=self.judging.base_url,
            connections=self.judging.connections,
            cache=self.store.folder / JUDGE_CACHE,
            check=self.check,
        )

    def _engine(self) -> Engine:
        config = config_of(self.store)
        return load_engine(config, config.model.slots)[0]


def as_json(found: Mapping[Path, Analysis]) -> list[dict[str, Any]]:
    """One entry per run: its tables, rows as objects. NaN is null."""
    return [
        {
            "run": str(folder),
            "tables": [
                {
                    "title": s.title,
                    "rows": [
                        {c: _plain(x) for c, x in zip(s.columns, r, strict=True)} for r in s.rows
                    ],
                    "notes": list(s.notes),
                }
                for s in analysis.sheets
            ],
        }
        for folder, analysis in found.items()
    ]


def _plain(x: Entry) -> Any:
    if isinstance(x, TrialKey):
        return x.key
    if not is_dataclass(x):
        return x
    fields = {**asdict(x), **({"rate": x.rate} if hasattr(x, "rate") else {})}
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()
    }


def show(found: Mapping[Path, Analysis], console: Console) -> None:
    for folder, analysis in found.items():
        console.print(str(folder), style="bold", markup=False)
        for s in analysis.sheets:
            console.print(_table(s))
            for note in s.notes:
                console.print(note, style="dim")


WIDE = 5
"""Columns above which a sheet of few rows is turned: whole words stay on a terminal of 80."""


def _table(sheet: Sheet) -> Table:
    lines = [list(sheet.columns), *([_said(x) for x in row] for row in sheet.rows)]
    if len(sheet.columns) > max(WIDE, len(sheet.rows)):
        lines = [list(line) for line in zip(*lines, strict=True)]
    table = Table(title=sheet.title, title_justify="left")
    for n, column in enumerate(lines[0]):
        table.add_column(column, justify="right" if n else "left", overflow="fold")
    for line in lines[1:]:
        table.add_row(*line)
    return table


def _said(x: Entry) -> str:
    cell = entry(x)
    return f"{cell.value} ({cell.interval})" if cell.interval else cell.value
