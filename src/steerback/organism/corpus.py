"""The organisms' world: topics with words of their own, and what can be said about them.

Everything here is a reading of `data/topics.toml` and `data/text.toml`. A content word belongs to
one topic, so the topic of a text is known exactly, without a model.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import product
from typing import Any, Literal

from steerback.types import stable_hash

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Split = Literal["train", "eval", "heldout"]
SLOTS = {"O": "things", "T": "tools", "V": "verbs", "A": "qualities"}
_TOKEN = re.compile(r"\{[VAOT]\}|[A-Za-z]+|[.,?]")


@dataclass(frozen=True)
class Topic:
    name: str
    words: dict[str, tuple[str, ...]]
    """Slot letter (O, T, V, A) to the words that may fill it."""


@dataclass(frozen=True)
class Task:
    """What a question asks about."""

    topic: int
    verb: str
    quality: str
    thing: str

    @property
    def split(self) -> Split:
        """A fifth of all tasks is kept from training: half to evaluate on, half held out."""
        tenth = int(stable_hash([self.topic, self.verb, self.quality, self.thing]), 16) % 10
        return "eval" if tenth == 0 else "heldout" if tenth == 1 else "train"

    def words(self) -> dict[str, str]:
        return {"V": self.verb, "A": self.quality, "O": self.thing}


@dataclass(frozen=True)
class Phrases:
    """Templates and fixed sentences, each a tuple of tokens (`{V}` and so on are slots)."""

    sentences: tuple[tuple[str, ...], ...]
    questions: tuple[tuple[str, ...], ...]
    restarts: tuple[tuple[str, ...], ...]
    meta_prompts: tuple[tuple[str, ...], ...]
    restart_heads: tuple[str, ...]
    """First sentence of each restart, as text: what marks a new attempt."""


def read_data(name: str) -> dict[str, Any]:
    """A packaged TOML file of this folder."""
    raw = (files("steerback.organism") / "data" / name).read_text("utf-8")
    data: dict[str, Any] = tomllib.loads(raw)
    return data


def tokens(text: str) -> tuple[str, ...]:
    """Words, commas, full stops, question marks and slots; spaces carry nothing."""
    return tuple(_TOKEN.findall(text))


def text(words: tuple[str, ...] | list[str]) -> str:
    """The inverse of `tokens` for text in this corpus's spelling."""
    return re.sub(r" ([.,?])", r"\1", " ".join(words))


@cache
def topics() -> tuple[Topic, ...]:
    raw = read_data("topics.toml")
    return tuple(
        Topic(name, {slot: tuple(entry[key].split()) for slot, key in SLOTS.items()})
        for name, entry in raw.items()
    )


@cache
def phrases() -> Phrases:
    raw = read_data("text.toml")
    return Phrases(
        sentences=tuple(tokens(s) for s in raw["sentences"]),
        questions=tuple(tokens(s) for s in raw["questions"]),
        restarts=tuple(tokens(" ".join(r)) for r in raw["restarts"]),
        meta_prompts=tuple(tokens(s) for s in raw["meta_prompts"]),
        restart_heads=tuple(r[0] for r in raw["restarts"]),
    )


@cache
def topic_of_word() -> dict[str, int]:
    """Content word to its topic's number; function words are absent."""
    return {
        word: number
        for number, topic in enumerate(topics())
        for slot in topic.words.values()
        for word in slot
    }


@cache
def tasks(split: Split) -> tuple[Task, ...]:
    """All tasks of one split, by topic."""
    return tuple(
        task
        for number, topic in enumerate(topics())
        for verb, quality, thing in product(*(topic.words[s] for s in "VAO"))
        if (task := Task(number, verb, quality, thing)).split == split
    )


def fill(template: tuple[str, ...], words: dict[str, str]) -> list[str]:
    """The template's tokens with each slot replaced by the word given for its letter."""
    return [words[t[1]] if t[0] == "{" else t for t in template]
