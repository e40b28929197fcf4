"""Text that steering took off its topic, cut so that a model can go on with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TypeVar

from pydantic import Field

from steerback.records import Record
from steerback.tomlfile import Table

T = TypeVar("T")

_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")


class DriftSettings(Table):
    score_max: float = Field(
        default=30.0,
        ge=0,
        le=100,
        description="Highest first-attempt score of a text that counts as off topic.",
    )
    words: int = Field(
        default=40,
        ge=4,
        description="Longest prefill in words; it ends with a sentence, and before any restart.",
    )


def per_direction(
    records: Iterable[Record], make: Callable[[Record], T | None], most: int
) -> list[T]:
    """What `make` makes of the records, at most so many of each direction; None is left out."""
    kept: dict[str, int] = {}
    out = []
    for record in records:
        direction = record.trial.cluster
        if kept.get(direction, 0) < most and (made := make(record)) is not None:
            kept[direction] = kept.get(direction, 0) + 1
            out.append(made)
    return out


def off_topic(record: Record, settings: DriftSettings) -> str:
    """The start of the first attempt, whole sentences; "" if it is not off topic or too short."""
    first = record.outcome.first
    if first is None or first > settings.score_max or record.outcome.degraded:
        return ""
    attempt = record.verdict.attempts[0]
    return whole_sentences(record.generation.text[: attempt.end], settings.words)


def whole_sentences(text: str, words: int) -> str:
    """The sentences that end within the first `words` words; "" if none does."""
    found = list(re.finditer(r"\S+", text))[:words]
    said = text[: found[-1].end()] if found else ""
    ends = [m.end() for m in _SENTENCE_END.finditer(said)]
    return said[: ends[-1]] if ends else ""
