"""Sets of questions: packaged, an organism's, from a file or from a URL."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from steerback import tomlfile
from steerback.errors import UserError, nearest

PACKAGED = ("eval", "heldout")
ORGANISM = ("organism:eval", "organism:heldout")
MAX_BYTES = 5_000_000
MAX_CHARS = 4_000
"""Longest question."""
TIMEOUT_S = 20.0


@dataclass(frozen=True)
class PromptSet:
    """Questions in order, without duplicates; `ids` and `categories` stand beside them."""

    name: str
    """The spec that it was loaded from."""
    questions: tuple[str, ...]
    ids: tuple[str, ...]
    categories: tuple[str, ...]
    """Empty where the source names none."""
    sha256: str
    """Of the file's bytes; for an organism's set, of the questions joined by newlines."""


class _Entry(NamedTuple):
    where: str
    """Line or key, for messages."""
    question: Any
    id: Any = ""
    category: Any = ""


def counterpart(spec: str) -> str:
    """The packaged set of other questions of the same kind; "" if the spec is not a packaged set."""
    return {a: b for pair in (PACKAGED, ORGANISM) for a, b in (pair, pair[::-1])}.get(spec, "")


def load_prompts(spec: str) -> PromptSet:
    """The questions that a spec names.

    `eval` and `heldout` are packaged; `organism:eval` and `organism:heldout` are in the organisms'
    language; `https://...` is fetched; anything else is a file. Formats by suffix: .jsonl (objects
    with "question" and, if wanted, "id" and "category"), .csv (those columns), .toml (tables of
    id = "question", named after the category), any other: one question per line.

    Raises UserError, naming the line: no such set or file, not reachable, not UTF-8, not in the
    format, empty, a question twice or too long.
    """
    if spec in ORGANISM:
        return _organism(spec)
    if spec in PACKAGED:
        return _parse(spec, ".toml", _packaged(spec))
    if urlsplit(spec).scheme in ("http", "https"):
        return _parse(spec, PurePosixPath(urlsplit(spec).path).suffix.lower(), _fetch(spec))
    return _parse(spec, Path(spec).suffix.lower(), _read(spec))


def _organism(spec: str) -> PromptSet:
    from steerback import organism  # its world is read only by those who ask for it

    found = organism.questions("eval" if spec.endswith("eval") else "heldout")
    texts = "\n".join(q.text for q in found).encode()
    return _checked(
        spec, [_Entry(str(i), q.text, "", q.topic) for i, q in enumerate(found, 1)], texts
    )


def _packaged(name: str) -> bytes:
    return (files("steerback") / "data" / f"prompts_{name}.toml").read_bytes()


def _read(spec: str) -> bytes:
    path = Path(spec)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        known = (*PACKAGED, *ORGANISM)
        raise UserError(f"prompts: no file or set {spec!r}; {nearest(spec, known)}") from None
    except OSError as error:
        raise UserError(f"prompts: cannot read {spec} ({error.strerror})") from None
    return _small_enough(spec, data)


def _fetch(url: str) -> bytes:
    remedy = "check it, or download the file and give its path"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            data: bytes = answer.read(MAX_BYTES + 1)
    except urllib.error.HTTPError as error:
        raise UserError(f"prompts: {url} answers {error.code} {error.reason}; {remedy}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"prompts: cannot reach {url} ({reason}); {remedy}") from None
    return _small_enough(url, data)


def _small_enough(spec: str, data: bytes) -> bytes:
    if len(data) > MAX_BYTES:
        raise UserError(
            f"prompts: {spec} is larger than {MAX_BYTES // 10**6} MB; use a smaller set"
        )
    return data


def _parse(spec: str, suffix: str, data: bytes) -> PromptSet:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"prompts: {spec}:{line} is not UTF-8; save it as UTF-8") from None
    return _checked(spec, list(_FORMATS.get(suffix, _lines)(spec, text)), data)


def _lines(spec: str, text: str) -> Iterator[_Entry]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _Entry(str(number), line)


def _jsonl(spec: str, text: str) -> Iterator[_Entry]:
    for entry in _lines(spec, text):
        try:
            fields = json.loads(entry.question)
        except json.JSONDecodeError as error:
            raise UserError(f"prompts: {spec}:{entry.where} is not JSON ({error.msg})") from None
        if not isinstance(fields, dict) or "question" not in fields:
            raise UserError(
                f'prompts: {spec}:{entry.where} has no "question"; use one object per line'
            )
        yield _from_fields(entry.where, fields)


def _csv(spec: str, text: str) -> Iterator[_Entry]:
    rows = csv.DictReader(io.StringIO(text, newline=""))
    if "question" not in (rows.fieldnames or ()):
        raise UserError(
            f"prompts: {spec} has no column 'question'; {nearest('question', rows.fieldnames or ())}"
        )
    try:
        for row in rows:
            yield _from_fields(str(rows.line_num), row)
    except csv.Error as error:
        raise UserError(f"prompts: {spec}:{rows.line_num + 1} is not CSV ({error})") from None


def _from_fields(where: str, fields: dict[str, Any]) -> _Entry:
    return _Entry(where, fields["question"], fields.get("id") or "", fields.get("category") or "")


def _toml(spec: str, text: str) -> Iterator[_Entry]:
    document = tomlfile.parse_document(spec, text)
    for category, table in document.data.items():
        if not isinstance(table, dict):
            raise document.error(
                (category,), 'prompts: questions stand in tables, [category] and id = "question"'
            )
        for name, question in table.items():
            yield _Entry(f"{category}.{name}", question, name, category)


_FORMATS: dict[str, Callable[[str, str], Iterator[_Entry]]] = {
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".toml": _toml,
}


def _checked(spec: str, entries: list[_Entry], data: bytes) -> PromptSet:
    seen: dict[str, str] = {}
    for entry in entries:
        question = _question(spec, entry)
        if question in seen:
            raise UserError(
                f"prompts: {spec}:{entry.where} repeats the question at {seen[question]}; "
                "remove one of them"
            )
        seen[question] = entry.where
    if not seen:
        raise UserError(f"prompts: {spec} has no questions; add one per line")
    return PromptSet(
        name=spec,
        questions=tuple(seen),
        ids=tuple(str(e.id) or f"q{i}" for i, e in enumerate(entries, 1)),
        categories=tuple(str(e.category) for e in entries),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def _question(spec: str, entry: _Entry) -> str:
    if not isinstance(entry.question, str) or not entry.question.strip():
        raise UserError(f"prompts: {spec}:{entry.where} has no text as its question; add one")
    question = entry.question.strip()
    if len(question) > MAX_CHARS:
        raise UserError(
            f"prompts: {spec}:{entry.where} has {len(question):,} characters; "
            f"use at most {MAX_CHARS:,}"
        )
    return question
