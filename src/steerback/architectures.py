"""The published models' architectures, as packaged data."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from steerback import tomlfile


@cache
def _table() -> dict[str, dict[str, Any]]:
    text = files("steerback").joinpath("data/architectures.toml").read_text("utf-8")
    return tomlfile.parse(text)


def architecture(repository: str) -> Mapping[str, Any] | None:
    """The fields of its config.json that fix its shape; None for a model that is not packaged."""
    found = _table().get(repository)
    config: Mapping[str, Any] | None = found["config"] if found else None
    return config


def gate(repository: str) -> str:
    """What stands before a download; empty for a model that is not known to be gated."""
    return str(_table().get(repository, {}).get("gate", ""))
