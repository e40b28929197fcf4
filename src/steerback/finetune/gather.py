"""Rows from wherever they come, checked: what is written to a file is fit to train on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from steerback.errors import UserError
from steerback.finetune import overlap, rows
from steerback.finetune.rows import Row
from steerback.judge.exact import attempt_bounds
from steerback.judge.segment import segment
from steerback.outfile import written


@dataclass
class Gathered:
    """Rows that may be trained on, and how many were left out for what reason."""

    rows: list[Row] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def counts(self) -> str:
        n = sum(r.correction for r in self.rows)
        said = f"{len(self.rows):,} rows: {n:,} self-corrections, {len(self.rows) - n:,} ordinary"
        out = "; ".join(f"{k:,} {why}" for why, k in self.left_out.most_common())
        return said + (f"; left out: {out}" if out else "")


def attempt_starts(text: str) -> list[int]:
    """Characters at which attempts after the first start, by explicit language or by one of the
    organisms' phrases: what judges go by."""
    return sorted({*segment(text)[1:], *(start for start, _ in attempt_bounds(text)[1:])})


def fit(found: Iterable[Row], against: Sequence[str] = (), where: str = "row") -> Gathered:
    """Rows whose acknowledgement reads as a restart and whose other parts do not, without near
    duplicates. Raises UserError for a question of an evaluation set."""
    every = list(found)
    overlap.refuse_shared([r.question for r in every], overlap.evaluation_questions(against), where)
    out = Gathered()
    for row in every:
        why = _unfit(row)
        if why:
            out.left_out[why] += 1
        else:
            out.rows.append(row)
    kept = overlap.distinct(out.rows)
    if len(kept) < len(out.rows):
        out.left_out["near duplicates"] += len(out.rows) - len(kept)
    out.rows = kept
    return out


def _unfit(row: Row) -> str:
    starts = attempt_starts(row.response)
    if not row.correction:
        return "ordinary answers that restart" if starts else ""
    begin, end = row.response_spans()[rows.ACKNOWLEDGEMENT]
    if not any(begin <= start < end for start in starts):
        return "acknowledgements that no judge would take for a restart"
    if any(not begin <= start < end for start in starts):
        return "self-corrections that restart elsewhere"
    return ""


def save(gathered: Gathered, to: Path) -> None:
    """Raises UserError if nothing is left, or the file cannot be written."""
    if not gathered.rows:
        raise UserError(f"no row is left to write; {gathered.counts()}")
    with written(to):
        rows.write(gathered.rows, to)
