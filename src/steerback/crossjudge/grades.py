"""What one judge, model or human, says of one response, as far as judges are compared by it."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerback.errors import UserError
from steerback.outfile import refuse_taken, written
from steerback.records import Record
from steerback.stats import outcome
from steerback.types import Verdict

COLUMNS = ("key", "question", "response", "multi", "first", "last")
"""Of the sheet that a human fills in: the last three."""
YES, NO = ("yes", "y", "true", "1"), ("no", "n", "false", "0")


@dataclass(frozen=True)
class Grade:
    multi: bool
    """Whether the response holds several attempts."""
    first: float | None
    """Score of the first attempt, 0-100; None if a human gave none."""
    last: float | None

    @property
    def improved(self) -> bool | None:
        """Whether the last attempt beats the first; None without two scores."""
        if not self.multi or self.first is None or self.last is None:
            return None
        return self.last > self.first

    @property
    def esr(self) -> bool | None:
        return self.improved if self.multi else False

    @property
    def kind(self) -> str:
        if not self.multi:
            return "one attempt"
        return {True: "improved", False: "not improved", None: "several, no scores"}[self.improved]


def grade_of(record: Record, verdict: Verdict | None) -> Grade | None:
    """None where the judge gave no valid score: missing is not a grade."""
    if verdict is None:
        return None
    o = outcome(record.trial.key, record.trial.cluster, verdict, record.generation.text)
    return None if o.missing else Grade(o.n_attempts > 1, o.first, o.last)


def write_sheet(path: Path, records: Iterable[Record]) -> int:
    """A CSV for a human to fill in; returns how many responses it holds. An existing file is kept."""
    refuse_taken(path)
    rows = [(r.trial.key, r.trial.question, r.generation.text, "", "", "") for r in records]
    with (
        written(path),
        path.open("w", encoding="utf-8", newline="", errors="backslashreplace") as file,
    ):
        csv.writer(file).writerows([COLUMNS, *rows])
    return len(rows)


def read_sheet(path: Path, keys: Iterable[str]) -> dict[str, Grade]:
    """Human grades by trial key. Rows with nothing under `multi` are not labelled yet.

    Raises UserError that names the row: a column that lacks, a key that is not in the sample, an
    answer that is neither yes nor no, a score that is not 0-100.
    """
    known = sorted(keys)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            lacking = {"key", "multi"} - set(reader.fieldnames or ())
            if lacking:
                raise UserError(f"{path}: no column {min(lacking)!r}; `--sheet` writes one")
            rows = list(enumerate(reader, 2))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path}: cannot read the labels ({error}); a CSV in UTF-8 is wanted"
        ) from error
    found: dict[str, Grade] = {}
    for line, row in rows:
        where = f"{path}: row {line}"
        if not (row["multi"] or "").strip():
            _refuse_half(where, row)
            continue
        key = _key(where, (row["key"] or "").strip(), known)
        if key in found:
            raise UserError(f"{where}: trial {key[:12]} is labelled twice; keep one row")
        found[key] = _grade(where, row)
    if not found:
        raise UserError(f"{path}: no row is labelled; write yes or no under multi")
    return found


def _refuse_half(where: str, row: Mapping[str, Any]) -> None:
    for name in ("first", "last"):
        if (row.get(name) or "").strip():
            raise UserError(
                f"{where}: {name} is {row[name]!r} and multi is empty; write yes or no under multi"
            )


def _key(where: str, start: str, known: list[str]) -> str:
    matches = [k for k in known if start and k.startswith(start)]
    if len(matches) != 1:
        what = "several trials begin" if matches else "no trial of the sample begins"
        raise UserError(f"{where}: {what} with {start!r}; copy the key from the sheet")
    return matches[0]


def _grade(where: str, row: Mapping[str, Any]) -> Grade:
    answer = row["multi"].strip().lower()
    if answer not in (*YES, *NO):
        raise UserError(f"{where}: multi is {row['multi']!r}; write yes or no")
    first, last = (_score(where, name, row.get(name)) for name in ("first", "last"))
    return Grade(answer in YES, first, last if answer in YES else first)


def _score(where: str, name: str, text: str | None) -> float | None:
    if not (text or "").strip():
        return None
    try:
        value = float(str(text))
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise UserError(f"{where}: {name} is {text!r}; write a number from 0 to 100, or nothing")
    return value
