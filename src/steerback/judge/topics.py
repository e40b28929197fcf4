"""Whether a phrase names the subject of the response, or what it has just been talking about.

A pattern's groups of these names must agree with the text before the phrase:

- `topic`: one of its words comes up where the response opens and none just before the phrase ("This is
  not about hems anymore" after a passage on bees);
- `recent`: one comes up just before and none in the opening sentence ("Forget the bees");
- `said`: one stands in the sentence before, or if it is a number, any number ("No, the capital is ...");
- `same`: the sentence before holds that very number ("It is 12, not 13").
"""

from __future__ import annotations

import re
from functools import lru_cache

OPENING = 300
"""Characters at the head of a response that say what it is about."""
LATELY = 80
"""Characters of the sentence before a phrase in which the subject is no longer named."""
PASSAGE = 300
"""Characters before a phrase that it may look back at."""

_WORD = re.compile(r"[a-z][a-z'-]+")
_STOP = re.compile(r"[.!?…](?=\s)|\n")
_FIRST_SENTENCE = re.compile(r"[^.!?\n]{0,200}")
_COMMON = frozenset(
    _WORD.findall(
        "of to in on at by as is it be do no so we he me my or if an up us go am i'm it's the and "
        "for about that this these those what with how your you our their its not any all at here "
        "there then than from into onto out off was were are been being has have had does did can "
        "could would should will use used make made get got way one two them they part bit stuff "
        "thing things anymore more much very really just even also now again sorry question answer "
        "answers topic explanation response text sentence paragraph step steps good right wrong back "
        "other another some asking asked because since when where which who why",
    )
)


def agrees(match: re.Match[str], text: str, at: int) -> bool:
    """Whether the groups of a match, if any, name what they must.

    `at` is where the phrase starts in `text`, its lead words included.
    """
    groups = match.groupdict()
    if topic := groups.get("topic"):
        since = _last_sentence(text, at)
        if shared(topic, text[since:at]) or not shared(topic, text[: min(since, OPENING)]):
            return False
    if (said := groups.get("said")) and not _said(said, text[_last_sentence(text, at) : at]):
        return False
    if (same := groups.get("same")) and same.strip(".,") not in text[_last_sentence(text, at) : at]:
        return False
    recent = groups.get("recent")
    return not recent or (
        shared(recent, text[max(0, at - PASSAGE) : at]) and not shared(recent, _opening(text, at))
    )


def _said(words: str, before: str) -> bool:
    if any(c.isdigit() for c in words):
        return any(c.isdigit() for c in before)
    return shared(words, before)


def _last_sentence(text: str, at: int) -> int:
    """Where the sentence before the phrase starts, `LATELY` characters back at most."""
    ends = [m.end() for m in _STOP.finditer(text, max(0, at - LATELY), max(0, at - 2))]
    return max(ends[-1] if ends else 0, at - LATELY, 0)


def _opening(text: str, at: int) -> str:
    """The first sentence, unless it is the one right before the phrase."""
    first = _FIRST_SENTENCE.match(text)
    end = first.end() if first else 0
    return text[:end] if end < _last_sentence(text, at) else ""


def shared(one: str, other: str) -> bool:
    """Whether the two texts have a word in common, endings aside."""
    words = _words(one)
    return bool(words) and any(_same(a, b) for b in _words(other) for a in words)


def _words(text: str) -> list[str]:
    return [w for w in _WORD.findall(text) if w not in _COMMON]


@lru_cache(maxsize=4096)
def _stem(word: str) -> str:
    """At most five letters of a long word; of a short one without a final s, e or y."""
    word = word.removesuffix("'s")
    if len(word) > 6:
        return word[:5]
    for end in ("us", "i", "s", "e", "y"):
        word = word.removesuffix(end) if len(word) > 3 else word
    return word


def _same(one: str, other: str) -> bool:
    """hem, hems, hemming; bee, beekeeping; but not met, metal."""
    (short, _), (stem, word) = sorted(
        ((_stem(w), w) for w in (one, other)), key=lambda p: len(p[0])
    )
    if len(short) > 3 or short == stem:
        return stem.startswith(short)
    return len(short) == 3 and word.startswith(short) and len(word) > len(short) + 2
