"""Whether a text says what the corpus can say: every sentence of it is a filled template or a phrase.

Exact where `stats.is_degraded` is not: a text that repeats nothing may still be no language. It asks
for the form alone, so a sentence on another topic fits.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from steerback.organism.corpus import phrases, tokens, topics

_ENDS = (".", "?")


class Form(NamedTuple):
    """Sentences of a text."""

    malformed: int
    """Those that fit no template and no restart phrase."""
    sentences: int


def form(text: str, cut_off: bool) -> Form:
    """`cut_off`: the token limit ended the text, so that what follows its last full stop is not counted.
    Where the text ended by itself a sentence without a full stop fits nothing."""
    whole, rest = _split(tokens(text))
    if rest and not cut_off:
        whole.append(rest)
    return Form(sum(not _fits(s, _answers()) for s in whole), len(whole))


def asks(question: str) -> bool:
    """Whether it is a question of this world, in one of its forms."""
    return _fits(tokens(question), _by_length(phrases().questions))


Templates = dict[int, list[tuple[str, ...]]]
"""By length in tokens."""


def _split(words: tuple[str, ...]) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """Sentences with the marks that end them, and what follows the last one."""
    whole, start = [], 0
    for place, word in enumerate(words, 1):
        if word in _ENDS:
            whole.append(words[start:place])
            start = place
    return whole, words[start:]


def _fits(sentence: tuple[str, ...], known: Templates) -> bool:
    return any(
        all(word in _fillers()[t[1]] if t[0] == "{" else word == t for word, t in pairs)
        for template in known.get(len(sentence), ())
        for pairs in [zip(sentence, template, strict=True)]
    )


@cache
def _fillers() -> dict[str, frozenset[str]]:
    """Slot letter to the words of all topics that may fill it."""
    return {s: frozenset(w for t in topics() for w in t.words[s]) for s in "VAOT"}


@cache
def _answers() -> Templates:
    restarts = [s for r in phrases().restarts for s in _split(r)[0]]
    return _by_length((*phrases().sentences, *restarts))


@cache
def _by_length(templates: tuple[tuple[str, ...], ...]) -> Templates:
    found: Templates = {}
    for template in templates:
        found.setdefault(len(template), []).append(template)
    return found
