"""TOML for people: errors that name file, line and remedy; files that explain themselves."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from steerback.errors import UserError, nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Loc = tuple[str | int, ...]
EMPTY = ("too_short", "string_too_short")
"""Errors of the fields that must hold at least one of what they hold."""


class Table(BaseModel):
    """A TOML table: every key is known, typed without conversion, and described."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Document:
    """A parsed file with what is needed to point into it."""

    name: str
    text: str
    data: dict[str, Any]
    """What the text says, or more: a document may be laid over defaults."""

    def line(self, loc: Loc) -> int | None:
        """1-based line where the key path starts, or that of the nearest table above it."""
        written = parse(self.text)
        while loc:
            if _holds(written, loc):
                return _first_line(self.text, loc)
            loc = loc[:-1]
        return None

    def error(self, loc: Loc, problem: str) -> UserError:
        """`file:line: problem`."""
        line = self.line(loc)
        return UserError(f"{self.name}:{line}: {problem}" if line else f"{self.name}: {problem}")


def parse(text: str) -> dict[str, Any]:
    """TOML as nested dicts. Raises tomllib.TOMLDecodeError."""
    data: dict[str, Any] = tomllib.loads(text)
    return data


def _holds(data: Any, loc: Loc) -> bool:
    for part in loc:
        if isinstance(part, int):
            if not isinstance(data, list) or part >= len(data):
                return False
        elif not isinstance(data, dict) or part not in data:
            return False
        data = data[part]
    return True


def _first_line(text: str, loc: Loc) -> int:
    # The parser gives no positions. A prefix of the file that parses and holds the key ends on or
    # after its line; the line after the last prefix that parses without it is where it starts.
    lines, start = text.splitlines(), 0
    for n in range(1, len(lines) + 1):
        try:
            data = tomllib.loads("\n".join(lines[:n]))
        except tomllib.TOMLDecodeError:
            continue
        if _holds(data, loc):
            break
        start = n
    return start + 1


def read(path: str | Path) -> Document:
    """Parses a TOML file. Raises UserError: not there, not UTF-8, not TOML (with the line)."""
    place = Path(path)
    try:
        text = place.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise UserError(f"{place}: cannot read this file ({error.strerror})") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{place}:{line}: not UTF-8; save the file as UTF-8") from None
    return parse_document(str(place), text)


def parse_document(name: str, text: str) -> Document:
    """Parses TOML that came from somewhere. Raises UserError with the line if it is not TOML."""
    try:
        return Document(name, text, tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        problem, _, where = str(error).partition(" (at ")
        digits = where.removeprefix("line ").partition(",")[0]
        spot = digits if digits.isdigit() else str(text.count("\n") + 1)
        raise UserError(
            f"{name}:{spot}: not valid TOML: {problem[:1].lower()}{problem[1:]}"
        ) from None


def explain(
    error: ValidationError, model: type[BaseModel], document: Document, at: Loc = ()
) -> UserError:
    """The first thing that is wrong with the table at `at`, as one line, and how many follow."""
    first, *others = error.errors(include_url=False)
    loc: Loc = first["loc"]
    more = f" (and {len(others)} more)" if others else ""
    return document.error((*at, *loc), _problem(dict(first), model, at) + more)


def _problem(error: dict[str, Any], model: type[BaseModel], at: Loc) -> str:
    loc, kind, given = error["loc"], error["type"], error["input"]
    name = ".".join(map(str, (*at, *loc)))
    if kind == "extra_forbidden":
        known = getattr(_model_at(model, loc[:-1]), "model_fields", {})
        return f"unknown key {name}; {nearest(str(loc[-1]), known)}"
    if kind == "missing":
        field = _model_at(model, loc[:-1]).model_fields[loc[-1]]
        return f"key {name} is missing: {field.description}"
    if kind == "literal_error":
        return f"{name} is {given!r}; allowed: {error['ctx']['expected']}"
    if kind == "string_pattern_mismatch":
        field = _model_at(model, loc[:-1]).model_fields[loc[-1]]
        return f"{name} is {_short(given)}; allowed: {field.description}"
    if kind in EMPTY and error["ctx"]["min_length"] == 1:
        return f"{name} is {_short(given)}; it should not be empty"
    wish = str(error["msg"]).removeprefix("Value error, ").replace("Input should", "it should")
    return f"{name} is {_short(given)}; {wish}" if name else wish


def _model_at(model: Any, loc: Loc) -> Any:
    for part in loc:
        model = model.model_fields[part].annotation
    return model


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# Writing


def commented(table: BaseModel, path: Sequence[str] = (), skip: Sequence[str] = ()) -> str:
    """TOML that loads back equal, every key under a comment that says what it means.

    A key without a value stands there as a comment. Fields in `skip` are left out.
    """
    fields = {n: f for n, f in type(table).model_fields.items() if n not in skip}
    values = {name: getattr(table, name) for name in fields}
    lines = [f"[{'.'.join(map(_key, path))}]"] if path else []
    for name, value in values.items():
        if not isinstance(value, BaseModel):
            lines += [*_comment(fields[name]), _assignment(name, value)]
    parts = ["\n".join(lines) + "\n"]
    for name, value in values.items():
        if isinstance(value, BaseModel):
            heading = "".join(line + "\n" for line in _comment(fields[name]))
            parts.append(heading + commented(value, (*path, name)))
    return "\n".join(parts)


def _comment(field: FieldInfo) -> list[str]:
    return textwrap.wrap(field.description or "", 96, initial_indent="# ", subsequent_indent="# ")


def _assignment(name: str, value: Any) -> str:
    return f"# {_key(name)} =" if value is None else f"{_key(name)} = {literal(value)}"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else literal(name)


def literal(value: Any) -> str:
    """A JSON-like value as TOML. Raises TypeError for what TOML cannot hold."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool | int | float):
        return json.dumps(value, allow_nan=False)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(k)} = {literal(v)}" for k, v in value.items()) + " }"
    raise TypeError(f"TOML cannot hold {value!r}")
