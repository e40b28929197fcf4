"""The name of a judge that asks a language model: every setting that can change a verdict."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from steerback.judge.prompt import Prompt
from steerback.types import stable_hash

RULES = 1
"""Version of how answers are parsed and verified."""


@cache
def _phrases() -> str:
    """Hash of the restart phrases and weights that boundaries are verified by."""
    data = files("steerback").joinpath("data")
    names = ("restarts.toml", "restarts_learned.json")
    return stable_hash([data.joinpath(name).read_text("utf-8") for name in names])


def judge_name(model: str, mode: str, prompt: Prompt, **settings: str | float | None) -> str:
    """`model:mode:hash`, the hash being that of the prompt, the phrases, the rules and the settings."""
    parts = [RULES, prompt.hash, _phrases() if mode == "verify" else "", settings]
    return f"{model}:{mode}:{stable_hash(parts)[:12]}"
