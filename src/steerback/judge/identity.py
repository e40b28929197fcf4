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
    """Hash of the restart phrases that boundaries are verified by."""
    return stable_hash(
        files("steerback").joinpath("data").joinpath("restarts.toml").read_text("utf-8")
    )


def judge_name(model: str, mode: str, prompt: Prompt, **settings: str | float | None) -> str:
    """`model:mode:hash`, the hash being that of the prompt, the phrases, the rules and the settings."""
    parts = [RULES, prompt.hash, _phrases() if mode == "verify" else "", settings]
    return f"{model}:{mode}:{stable_hash(parts)[:12]}"
