"""The judge that cannot be wrong: in the organisms' world every content word has one topic.

An attempt begins at the start of the response and at each restart phrase the organisms know. Its
score is the share of its content words that belong to the question's topic, of 100.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from steerback.judge.base import Request
from steerback.organism.corpus import phrases, topic_of_word, topics
from steerback.types import Attempt, Verdict, stable_hash

_WORD = re.compile(r"[A-Za-z]+")
_PAPER_RUN = 5
_TRIGRAMS, _TWINS, _ONE_WORD = 0.4, 0.15, 0.6
_FEW_WORDS = 8


@dataclass(frozen=True)
class ExactJudge:
    """Scores responses to organisms' questions from the text alone.

    Rules, in full:

    - A restart counts where the first sentence of a known restart phrase stands verbatim at the
      start of a sentence. The phrase opens the new attempt and belongs to it. A phrase that opens
      the response opens the first attempt.
    - The first attempt scores 0 if it has no content word: it answers nothing. A later attempt
      without one was cut off after its phrase and has no score.
    - A degenerate attempt keeps half of its score (`degenerate`).
    - The question's topic is that of most of its content words. Without one, or with a tie, the
      response is unscored.
    """

    @cached_property
    def name(self) -> str:
        """The rules' version and a hash of every word and phrase they rest on."""
        known = [[t.name, {k: list(v) for k, v in t.words.items()}] for t in topics()]
        return f"exact-1:{stable_hash([known, list(phrases().restart_heads)])[:12]}"

    def judge(self, requests: Sequence[Request]) -> list[Verdict]:
        return [self._verdict(r) for r in requests]

    def _verdict(self, request: Request) -> Verdict:
        topic = question_topic(request.question)
        if topic is None:
            reason = "the question's topic is unknown: no topic has most of its content words"
            return Verdict(request.trial_key, self.name, (), "unscored", reason)
        bounds = attempt_bounds(request.response)
        attempts, degraded = [], 0
        for number, (start, end) in enumerate(bounds):
            said = request.response[start:end]
            attempts.append(Attempt(start, end, attempt_score(said, topic, first=number == 0)))
            degraded += degenerate(said)
        raw = f"topic {topics()[topic].name}; degenerate attempts: {degraded}"
        return Verdict(request.trial_key, self.name, tuple(attempts), "ok", raw)


def question_topic(question: str) -> int | None:
    """Number of the topic that has most of the question's content words; None if there is none."""
    ranks = Counter(_content_topics(question)).most_common(2)
    if not ranks or (len(ranks) == 2 and ranks[0][1] == ranks[1][1]):
        return None
    return ranks[0][0]


def attempt_bounds(response: str) -> list[tuple[int, int]]:
    """Character ranges of the attempts; together they are the whole response."""
    starts = [m.start("phrase") for m in _restart_pattern().finditer(response)]
    cuts = [0, *(s for s in starts if response[:s].strip()), len(response)]
    return list(pairwise(cuts))


def attempt_score(text: str, topic: int, first: bool) -> float | None:
    """0-100; None for a later attempt that holds no content word."""
    found = _content_topics(text)
    if not found:
        return 0.0 if first else None
    share = 100 * sum(t == topic for t in found) / len(found)
    return share / 2 if degenerate(text) else share


def paper_degraded(text: str) -> bool:
    """The published rule: a word of two or more letters stands five times or more in a row."""
    run, last = 0, ""
    for word in _WORD.findall(text.lower()):
        run = run + 1 if word == last else 1
        last = word
        if run >= _PAPER_RUN and len(word) > 1:
            return True
    return False


def degenerate(text: str) -> bool:
    """The published rule, or text that goes in circles.

    Circles: of eight words or more, over 40% of the word trigrams are repeats or over 15% of
    neighbours are twins; of eight content words or more, over 60% are one word.
    """
    said = _WORD.findall(text.lower())
    if paper_degraded(text):
        return True
    if len(said) >= _FEW_WORDS:
        trigrams = list(zip(said, said[1:], said[2:], strict=False))
        twins = sum(a == b for a, b in pairwise(said))
        if 1 - len(set(trigrams)) / len(trigrams) > _TRIGRAMS or twins > _TWINS * (len(said) - 1):
            return True
    content = Counter(w for w in said if w in topic_of_word())
    total = content.total()
    return total >= _FEW_WORDS and max(content.values()) > _ONE_WORD * total


def _content_topics(text: str) -> list[int]:
    lookup = topic_of_word()
    return [lookup[w] for w in _WORD.findall(text.lower()) if w in lookup]


def _restart_pattern() -> re.Pattern[str]:
    heads = sorted(set(phrases().restart_heads), key=len, reverse=True)
    either = "|".join(r"\s+".join(map(re.escape, h.split())) for h in heads)
    return re.compile(rf"(?:^|(?<=[.?!]))\s*(?P<phrase>{either})")
