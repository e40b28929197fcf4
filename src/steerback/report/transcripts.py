"""Trials as data for the page: texts cut into coloured pieces, and what filters need to know.

Texts are cut here, by code points: JavaScript counts in UTF-16 units, and offsets would not fit.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from steerback.judge.segment import restarts
from steerback.report.gather import Row, Run
from steerback.types import Attempt, Intervention, Trial

RAW = 600
"""Characters of a judge's own words that are kept."""


def island(runs: Sequence[Run]) -> Markup:
    """All trials as JSON that can stand inside <script> whatever the texts contain: pure ASCII,
    without <, > and &."""
    data = {
        "runs": [run.name for run in runs],
        "commands": [f"steerback replay {shlex.quote(str(run.folder))} " for run in runs],
        "trials": [trial_json(row, i, run) for i, run in enumerate(runs) for row in run.rows],
    }
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # nothing in it can end the element it stands in


def trial_json(row: Row, run: int, of: Run) -> dict[str, Any]:
    """One trial. Seeds are text, for they have more digits than a JavaScript number."""
    trial, made, verdict, outcome = row
    attempts = verdict.attempts if verdict else ()
    add = trial.steered_by
    direction = f"{add.source}:{add.index}" if add else ""
    found = {
        "run": run,
        "key": trial.key,
        "protocol": trial.protocol,
        "arm": trial.arm,
        "model": trial.model,
        "question": trial.question,
        "direction": direction,
        "label": of.labels.get(direction, ""),
        "strength": f"{add.value:.3g} {add.unit}" if add else "",
        "steering": [describe(i) for i in trial.interventions],
        "seed": str(trial.seed),
        "finish": made.finish_reason,
        "tokens": len(made.token_ids),
        "pieces": pieces(made.text, attempts),
        "scores": [None if a.score is None else round(a.score, 1) for a in attempts],
        "status": verdict.status if verdict else "unjudged",
        "flags": flags(row),
    }
    if outcome and outcome.thirds:
        found["thirds"] = [None if s is None else round(s, 1) for s in outcome.thirds]
    if verdict and verdict.raw:
        found["judge"] = verdict.raw[:RAW] + ("…" if len(verdict.raw) > RAW else "")
    if said := asked_besides(trial):
        found["prompt"] = said
    if trial.prefill:
        found["prefill"] = len(trial.prefill)
    return found


def flags(row: Row) -> list[str]:
    """What happened, by the names that the filter offers."""
    o = row.outcome
    if o is None:
        return ["unjudged"]
    if o.missing:
        return ["missing", *(["degraded"] if o.degraded else [])]
    facts = {
        "restarted": o.multi,
        "improved": o.improved,
        "worse": o.improved is False,
        "implicit": o.implicit,
        "declined": o.implicit_decline,
        "degraded": o.degraded,
        "on topic": o.three_way == "on_topic",
        "steered": o.three_way == "steered",
    }
    return [name for name, yes in facts.items() if yes]


def pieces(text: str, attempts: Sequence[Attempt]) -> list[list[Any]]:
    """The whole text in order as [text, attempt, restart?]; attempt -1 is part of none."""
    marks = [(r.start, r.end) for r in restarts(text)]
    spans = [(a.start, a.end) for a in attempts]
    ends = {0, len(text), *(x for span in (*marks, *spans) for x in span)}
    cuts = sorted(x for x in ends if 0 <= x <= len(text))
    return [
        [text[a:b], _covering(spans, a), int(_covering(marks, a) >= 0)] for a, b in pairwise(cuts)
    ]


def _covering(spans: Sequence[tuple[int, int]], at: int) -> int:
    return next((n for n, (start, end) in enumerate(spans) if start <= at < end), -1)


def asked_besides(trial: Trial) -> str:
    """What the model saw, where that is not the question alone."""
    if [(m.role, m.content) for m in trial.messages] == [("user", trial.question)]:
        return ""
    return "\n\n".join(f"{m.role}: {m.content}" for m in trial.messages)


def describe(i: Intervention) -> str:
    """One intervention in a line."""
    where = "" if i.positions == "generated" else f", {i.positions}"
    verb = {"add": "+", "clamp": "clamped to "}.get(i.kind, "clamped after additions to ")
    return f"{i.source}:{i.index} {verb}{i.value:.4g} {i.unit} at layer {i.layer}{where}"
