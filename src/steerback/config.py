"""What a run is made of."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


def diff(old: Mapping[str, Any], new: Mapping[str, Any], free: Collection[str] = ()) -> list[str]:
    """`key: old -> new` for every dotted key that differs, those in `free` (or below) left out."""
    lines: list[str] = []
    _collect(old, new, "", frozenset(free), lines)
    return lines


def _collect(old: Any, new: Any, path: str, free: Collection[str], lines: list[str]) -> None:
    if path in free or (old == new and type(old) is type(new)):
        return
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(k for k in new if k not in old)]:
            below = f"{path}.{key}" if path else key
            _collect(old.get(key), new.get(key), below, free, lines)
    else:
        lines.append(f"{path}: {_short(old)} -> {_short(new)}")


def _short(value: Any, width: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."
