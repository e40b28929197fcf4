"""Sentences that ask the model to watch itself: packaged, the organisms' own, or from a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from steerback import tomlfile
from steerback.errors import UserError
from steerback.prompts import ORGANISM

LABEL = "{label}"
"""Stands for what the steered direction is said to stand for."""


def load_metaprompts(sets: Sequence[str], prompts: str) -> dict[str, str]:
    """Name -> sentence, of all sets. A set is `auto` (that which fits the questions `prompts`),
    `packaged`, `organism` or a TOML file of name = "sentence".

    Raises UserError: a file that cannot be read or holds something else, a name twice.
    """
    found: dict[str, str] = {}
    for name in sets:
        for key, text in _set(name, prompts).items():
            if key in found:
                raise UserError(
                    f"meta-prompts: two sets have a sentence {key!r}; rename one of them"
                )
            found[key] = text
    return found


def _set(name: str, prompts: str) -> Mapping[str, str]:
    if name == "auto":
        name = "organism" if prompts in ORGANISM else "packaged"
    if name == "organism":
        return _organism()
    if name == "packaged":
        text = (files("steerback") / "data" / "metaprompts.toml").read_text("utf-8")
        return _checked(name, tomlfile.parse(text))
    return _checked(name, tomlfile.read(Path(name)).data)


def _organism() -> Mapping[str, str]:
    """The sentences that the organisms met in training; they know the words of no others."""
    from steerback.organism import corpus  # its world is read only by those who ask for it

    known = corpus.phrases().meta_prompts
    return {f"trained {n}" if n > 1 else "trained": corpus.text(t) for n, t in enumerate(known, 1)}


def _checked(name: str, data: Mapping[str, Any]) -> Mapping[str, str]:
    if not data:
        raise UserError(
            f'meta-prompts: {name} is empty; write lines such as watch = "Stay on topic."'
        )
    for key, text in data.items():
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"meta-prompts: {name}: {key} is not a sentence; write it in quotes")
    return {key: text.strip() for key, text in data.items()}
