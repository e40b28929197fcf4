"""Nested mappings: laid over one another, and compared."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over`, filled up with what only `under` has, table by table."""
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def diff(old: Mapping[str, Any], new: Mapping[str, Any], free: Collection[str] = ()) -> list[str]:
    """`key: old -> new` for every dotted key that differs.

    Keys in `free`, and what is below them, may differ; `key.+` frees tables below `key` that only
    one side has.
    """
    lines: list[str] = []
    _collect(old, new, "", frozenset(free), lines)
    return lines


def _collect(old: Any, new: Any, path: str, free: Collection[str], lines: list[str]) -> None:
    if path in free or (old == new and type(old) is type(new)):
        return
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        lines.append(f"{path}: {_short(old)} -> {_short(new)}")
        return
    for key in [*old, *(k for k in new if k not in old)]:
        below = f"{path}.{key}" if path else key
        if f"{path}.+" in free and not (key in old and key in new):
            continue
        _collect(old.get(key), new.get(key), below, free, lines)


def _short(value: Any, width: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."
