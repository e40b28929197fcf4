"""Sentences that reject or restart an answer in words that no phrase foresaw.

The odds of a sentence are a sum of weights of its words, pairs and triples of them, and of how the next
sentence begins: a logistic regression on labelled texts (`tests/data/restarts/learn.py` makes the file).
It adds to what the phrases find, and moves a restart to an earlier sentence that rejects too; it never
takes one away. What it says can be read off: `Learned.reasons`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import chain, pairwise, repeat

from steerback.judge.prose import BLANK, FIRST

NAME = "learned"
"""Stands for the pattern of a restart that only the weights found."""
LONGEST = 24
"""Words and marks of a sentence that are read."""
_FAR = 300
"""Characters in which they are looked for."""
_NEXT = 4
"""Words of the next sentence that are read."""
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?|\d+|\x01+|[^\sa-z\d]")
_BREAK = re.compile(
    r"(?<=[.!?…])[)\"'\]]*\s+|\s*\n\s*|(?<=\.\.\.)(?=[^\s.])|(?<=[—–])\s*|(?<=\s--)\s+"
)
_SELF = re.compile(r"\b(?:i|i'm|i've|my|me)\b")
_READER = re.compile(r"\b(?:you|your)\b")


@dataclass(frozen=True)
class Sentence:
    """text[start:end], list markers and other layout before it left out."""

    start: int
    end: int


def sentences(text: str) -> list[Sentence]:
    """Those of a prose view, in order; a dash or an ellipsis ends one too."""
    edges = [
        0,
        *chain.from_iterable((m.start(), m.end()) for m in _BREAK.finditer(text)),
        len(text),
    ]
    found = []
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        # a word at once, and no "a)" or "1.", has no layout before it
        if not text[start : start + 2].isalpha():
            marker = FIRST.match(text, start, end)
            start = marker.end() if marker else start
        if text[start:end].strip():
            found.append(Sentence(start, end))
    return found


def words_of(text: str) -> list[str]:
    """The first words and marks of a sentence in a prose view."""
    words = _WORD.findall(text[:_FAR])[:LONGEST]
    return [w if w[0] != BLANK else BLANK for w in words]


def features(text: str, after: str = "", words: Sequence[str] = ()) -> set[str]:
    """Of a sentence in a prose view, and of the one after it. words: its own, if they are known."""
    words = words or words_of(text)
    opened = ["^", *words]
    found = {*words, f"#{min(len(words) // 4, 6)}"}
    found.update(f"{a} {b}" for a, b in pairwise(opened))
    found.update(f"{a} {b} {c}" for a, b, c in zip(opened, opened[1:], opened[2:], strict=False))
    following = ["^", *words_of(after[:60])[:_NEXT]]
    found.update(f"> {a} {b}" for a, b in pairwise(following))
    found.add("#self" if _SELF.search(text) else "#no self")
    found.add("#reader" if _READER.search(text) else "#no reader")
    return found


@dataclass(frozen=True)
class Learned:
    weights: Mapping[str, float]
    bias: float
    enough: float
    """Log odds from which a sentence counts."""
    hint: float
    """What its single words must weigh together: cheap to know, and most sentences have less."""

    def odds(self, text: str, after: str = "", words: Sequence[str] = ()) -> float:
        """Log odds that a sentence rejects or restarts the answer that it stands in."""
        return self.bias + self._sum(features(text, after, words))

    def _sum(self, found: set[str]) -> float:
        # in one order: sums of floats depend on it, and that of a set on the process
        return sum(self.weights[f] for f in sorted(found & self.weights.keys()))

    def rejects(self, text: str, after: str = "") -> bool:
        """Whether a sentence counts as one that rejects or restarts its answer."""
        words = words_of(text)
        hint = sum(map(self.weights.get, dict.fromkeys(words), repeat(0.0)))
        return hint >= self.hint and self.odds(text, after, words) > self.enough

    def reasons(self, text: str, after: str = "", most: int = 5) -> list[tuple[str, float]]:
        """The features that speak loudest for a restart, with their weights."""
        heard = ((f, self.weights.get(f, 0.0)) for f in features(text, after))
        return sorted(heard, key=lambda item: (-item[1], item[0]))[:most]

    def runs(self, text: str, cut: Sequence[Sentence]) -> Iterator[tuple[int, int]]:
        """First and last of neighbouring sentences that count, by their places in `cut`; the first of a
        response never does."""
        following = [*(text[s.start : s.end] for s in cut[1:]), ""][: len(cut)]
        run: list[int] = []
        for n, (sentence, after) in enumerate(zip(cut, following, strict=True)):
            if n and self.rejects(text[sentence.start : sentence.end], after):
                run.append(n)
            elif run:
                yield run[0], run[-1]
                run = []
        if run:
            yield run[0], run[-1]


def parse(document: Mapping[str, object]) -> Learned:
    """From the JSON that `dump` makes."""
    weights = document["weights"]
    assert isinstance(weights, dict)
    bias, enough, hint = (_number(document[key]) for key in ("bias", "enough", "hint"))
    return Learned({str(k): float(v) for k, v in weights.items()}, bias, enough, hint)


def _number(value: object) -> float:
    assert isinstance(value, int | float)
    return float(value)


def dump(learned: Learned, made_from: str) -> str:
    """JSON, weights by name; made_from: hash of the texts that it was fitted to."""
    weights: Iterable[tuple[str, float]] = sorted(learned.weights.items())
    document = {
        "made_from": made_from,
        "bias": learned.bias,
        "enough": learned.enough,
        "hint": learned.hint,
        "weights": dict(weights),
    }
    return json.dumps(document, indent=0, ensure_ascii=False) + "\n"


@cache
def packaged() -> Learned:
    """The weights that come with the package."""
    text = (files("steerback") / "data" / "restarts_learned.json").read_text("utf-8")
    return parse(json.loads(text))
