"""A judge's answer to claims about attempts, strictly: repaired only where nothing is invented.

Repairs: text around the JSON, a reasoning block before it, code fences, commas before a closing
bracket, raw line ends inside strings. Everything else that is not the format is a `BadAnswer`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

_TRAILING_COMMA = re.compile(r'("(?:\\.|[^"\\])*")|,(?=\s*[}\]])', re.DOTALL)


class BadAnswer(Exception):  # noqa: N818 - it is the answer that is bad, not the program
    """The answer is not in the format; the message says how."""


@dataclass(frozen=True)
class Claim:
    """What the judge says: this text is an attempt and deserves this score (0-100)."""

    text: str
    score: float


def parse_answer(answer: str) -> list[Claim]:
    """The attempts of the answer's one JSON object, in order; an empty list if it holds none.

    Raises BadAnswer: as `the_object`; a text that is empty or not a string, a score that is not a
    number from 0 to 100.
    """
    attempts = the_object(answer, "attempts")["attempts"]
    if not isinstance(attempts, list):
        raise BadAnswer("'attempts' is not a list")
    return [_claim(n, item) for n, item in enumerate(attempts, 1)]


def the_object(answer: str, key: str) -> dict[str, Any]:
    """The answer's JSON object that has this key.

    Raises BadAnswer: an empty answer, no such object, one that is cut off, two that differ.
    """
    said = _without_trailing_commas(answer.rpartition("</think>")[2])
    if not said.strip():
        raise BadAnswer("the answer is empty")
    found = [(value, end) for value, end in _objects(said) if key in value]
    begun = re.compile(rf'"{key}"\s*:').search(said, found[-1][1] if found else 0)
    if not found or begun:
        raise BadAnswer(
            f"the JSON object with '{key}' {'is cut off or broken' if begun else 'is missing'}"
        )
    if any(value != found[0][0] for value, _ in found[1:]):
        raise BadAnswer("the answer holds several JSON objects that differ")
    return found[0][0]


def _claim(number: int, item: Any) -> Claim:
    where = f"attempt {number}"
    if not isinstance(item, dict):
        raise BadAnswer(f"{where} is not an object")
    text, score = item.get("text"), item.get("score")
    if not isinstance(text, str) or not text.strip():
        raise BadAnswer(f"{where} has no text")
    return Claim(text, valid_score(score, where))


def valid_score(value: Any, where: str) -> float:
    """The value as a float; BadAnswer unless it is a number (no string, no bool) from 0 to 100."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadAnswer(f"{where}: score {_short(value)} is not a number")
    if not (0 <= value <= 100) or math.isnan(value):
        raise BadAnswer(f"{where}: score {_short(value)} is outside 0-100")
    return float(value)


def _objects(said: str) -> Iterator[tuple[dict[str, Any], int]]:
    """The outermost JSON objects in a text, each with the offset at which it ends."""
    at = said.find("{")
    while at >= 0:
        try:
            value, end = _DECODER.raw_decode(said, at)
            yield value, end
        except (ValueError, RecursionError):
            end = at + 1
        at = said.find("{", end)


def _without_trailing_commas(said: str) -> str:
    """The text with each such comma outside of strings made a space, so that offsets stay."""
    return _TRAILING_COMMA.sub(lambda m: m.group(1) or " ", said)


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a key stands twice")
    return table


_DECODER = json.JSONDecoder(parse_constant=_refuse, strict=False, object_pairs_hook=_unique)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 30 else text[:27] + "..."
