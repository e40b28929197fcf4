"""Training rows: a text with character spans, checked when it is read, one JSON object per line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerback.errors import UserError
from steerback.types import Intervention

PROMPT, OFF_TOPIC, ACKNOWLEDGEMENT, ANSWER = "prompt", "off_topic", "acknowledgement", "answer"
PARTS = (PROMPT, OFF_TOPIC, ACKNOWLEDGEMENT, ANSWER)
"""Parts of a row in their order. A correction has all of them, an ordinary row PROMPT and ANSWER."""
ORDINARY = (PROMPT, ANSWER)

Span = tuple[int, int]
"""Characters [start, end)."""


@dataclass(frozen=True)
class Row:
    text: str
    """The question, and the response after it."""
    spans: Mapping[str, Span]
    """Part -> characters. Between the parts stands white space and nothing else."""
    subject: str = ""
    """What the off-topic part is about, if it is known."""
    push: Intervention | None = None
    """The intervention under which the off-topic part was written, if there was one."""
    source: str = ""
    """Who wrote it."""

    @property
    def correction(self) -> bool:
        return OFF_TOPIC in self.spans

    def part(self, name: str) -> str:
        start, end = self.spans[name]
        return self.text[start:end]

    @property
    def question(self) -> str:
        return self.part(PROMPT)

    @property
    def offset(self) -> int:
        """Character at which the response begins."""
        return self.spans[OFF_TOPIC if self.correction else ANSWER][0]

    @property
    def response(self) -> str:
        return self.text[self.offset : self.spans[ANSWER][1]]

    def response_spans(self) -> dict[str, Span]:
        """The parts of the response, counted from its first character."""
        at = self.offset
        return {p: (a - at, b - at) for p, (a, b) in self.spans.items() if p != PROMPT}

    def clean(self) -> Row:
        """The same question with the answer alone."""
        return ordinary(self.question, self.part(ANSWER), push=self.push, source=self.source)

    def record(self) -> dict[str, Any]:
        """As a line of the file."""
        out: dict[str, Any] = {
            "text": self.text,
            "spans": {p: list(self.spans[p]) for p in PARTS if p in self.spans},
        }
        out |= {k: v for k in ("subject", "source") if (v := getattr(self, k))}
        if self.push is not None:
            p = self.push
            out["push"] = {
                "source": p.source,
                "index": p.index,
                "value": p.value,
                "layer": p.layer,
                "unit": p.unit,
                "positions": p.positions,
            }
        return out


def correction(
    question: str, off_topic: str, acknowledgement: str, answer: str, **facts: Any
) -> Row:
    """A row from its parts, joined by single spaces (the question by a line end)."""
    said = (question, off_topic, acknowledgement, answer)
    return _joined(dict(zip(PARTS, said, strict=True)), facts)


def ordinary(question: str, answer: str, **facts: Any) -> Row:
    return _joined({PROMPT: question, ANSWER: answer}, facts)


def _joined(parts: Mapping[str, str], facts: Mapping[str, Any]) -> Row:
    text, spans = "", dict[str, Span]()
    for name, said in parts.items():
        text += "" if not text else "\n" if len(spans) == 1 else " "
        spans[name] = (len(text), len(text) + len(said.strip()))
        text += said.strip()
    return checked(Row(text, spans, **facts), "row")


# --- checks ----------------------------------------------------------------------------------


def checked(row: Row, where: str) -> Row:
    """The row. Raises UserError that begins with `where` unless its spans are the parts in order,
    disjoint, not empty, and cover all of the text but white space."""
    given = tuple(p for p in PARTS if p in row.spans)
    unknown = sorted(set(row.spans) - set(PARTS))
    if unknown:
        raise UserError(f"{where}: unknown span {unknown[0]!r}; spans are {', '.join(PARTS)}")
    if given not in (PARTS, ORDINARY):
        missing = [p for p in PARTS if p not in given]
        raise UserError(
            f"{where}: span {missing[0]!r} is missing; a row has {', '.join(PARTS)}, or "
            f"{' and '.join(ORDINARY)} alone"
        )
    at, before = 0, "the beginning"
    for name in given:
        start, end = row.spans[name]
        if not 0 <= start < end <= len(row.text):
            raise UserError(
                f"{where}: span {name!r} is [{start}, {end}], which is empty or outside the "
                f"{len(row.text)} characters of the text"
            )
        if start < at:
            raise UserError(
                f"{where}: span {name!r} begins at {start}, inside {before!r}, which ends at {at}; "
                "spans stand in order and do not overlap"
            )
        _only_space(row.text[at:start], where, f"between {before} and {name}")
        if row.text[start:end] != row.text[start:end].strip():
            raise UserError(
                f"{where}: span {name!r} begins or ends with white space; leave it outside"
            )
        at, before = end, name
    _only_space(row.text[at:], where, f"after {before}")
    return row


def _only_space(gap: str, where: str, place: str) -> None:
    if gap.strip():
        raise UserError(
            f"{where}: {gap.strip()[:40]!r} {place} belongs to no span; every part of the text does"
        )


# --- files -----------------------------------------------------------------------------------


def read(path: Path) -> list[Row]:
    """Rows of a JSONL file. Raises UserError naming file and line."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a JSONL file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8; save it as UTF-8") from None
    rows = [_parsed(line, f"{path}:{n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise UserError(f"{path}: holds no row; `steerback finetune data` writes some")
    return rows


def write(rows: Iterable[Row], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(r.record(), ensure_ascii=False) + "\n" for r in rows)


def digest(path: Path) -> str:
    """SHA-256 of the file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _parsed(line: str, where: str) -> Row:
    try:
        data = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: is not JSON ({error.msg})") from None
    if not isinstance(data, dict) or not isinstance(data.get("text"), str):
        raise UserError(f'{where}: is no object with a "text"')
    spans = data.get("spans")
    if not isinstance(spans, dict) or not all(map(_is_span, spans.values())):
        raise UserError(f'{where}: "spans" is to give each part its [start, end] in characters')
    push = None
    if data.get("push") is not None:
        try:
            push = Intervention("add", **data["push"])
        except TypeError:
            raise UserError(
                f'{where}: "push" is to hold source, index, value, layer, unit and positions'
            ) from None
    own = {p: (int(a), int(b)) for p, (a, b) in spans.items()}
    facts = {k: str(data.get(k, "")) for k in ("subject", "source")}
    return checked(Row(data["text"], own, push=push, **facts), where)


def _is_span(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(x) is int for x in value)
