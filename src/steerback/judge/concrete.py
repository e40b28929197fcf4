"""How concrete the labels of latents are, 0-100: by a model that is asked, or offline by their words.

The paper keeps latents from 65 up. A label that could not be rated is None, never 0.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from functools import cache, partial
from importlib.resources import files

from steerback.judge.ask import Asker, Failed, Question
from steerback.judge.parse import BadAnswer, the_object, valid_score

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BATCH = 20
"""Labels that one prompt holds."""

_PLACE = "{labels}"
_WORD = re.compile(r"[A-Za-z][A-Za-z'’]*")
_IDEA = re.compile(
    r"(?:tion|sion|ness|ity|ism|ment|ance|ence|ship|hood|acy|ancy|ency|tude|logy|ics|ive|ical|able"
    r"|ible|ful|less|ous)s?$"
)
_ENDINGS = (
    ("ies", "y"),
    ("ves", "f"),
    ("ing", ""),
    ("ing", "e"),
    ("es", ""),
    ("ed", ""),
    ("s", ""),
)
_NAME, _UNKNOWN = 0.6, 0.3
"""How much a capitalised word inside the label, and a word without any sign, speak for a thing."""


def rate_labels(labels: Sequence[str], asker: Asker, batch: int = BATCH) -> list[float | None]:
    """0-100 for each label, by asking a model about `batch` at a time; None where that failed."""
    groups = [labels[i : i + batch] for i in range(0, len(labels), batch)]
    questions = [
        Question(_prompt(group), partial(read_ratings, n=len(group)), _template().split(_PLACE)[0])
        for group in groups
    ]
    ratings: list[float | None] = []
    for group, result in zip(groups, asker.ask(questions), strict=True):
        ratings += [None] * len(group) if isinstance(result, Failed) else result
    return ratings


def read_ratings(answer: str, n: int) -> list[float]:
    """Scores of lines 1 to n. Raises BadAnswer unless each has exactly one."""
    entries = the_object(answer, "ratings")["ratings"]
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise BadAnswer("'ratings' is not a list of objects")
    numbers = [e.get("number") for e in entries]
    if sorted(map(str, numbers)) != sorted(map(str, range(1, n + 1))):
        raise BadAnswer(f"the ratings are not numbered from 1 to {n}")
    scores = {str(e["number"]): valid_score(e.get("score"), f"line {e['number']}") for e in entries}
    return [scores[str(i)] for i in range(1, n + 1)]


@cache
def _template() -> str:
    return files("steerback").joinpath("data").joinpath("concreteness_prompt.md").read_text("utf-8")


def _prompt(labels: Sequence[str]) -> str:
    lines = "\n".join(f"{i}. {' '.join(label.split())}" for i, label in enumerate(labels, 1))
    return _template().replace(_PLACE, lines)


def rate_by_words(label: str) -> float:
    """0-100 from the words alone: 50 plus 45 times the mean of what each word speaks for.

    A word of the packaged list of things speaks 1, one of the list of ideas, or with the ending of an
    abstract noun, -1; a name and an unknown word a little for a thing. Words of a label's frame
    ("references to") do not count. Measured against labels rated by hand in docs/judges.md.
    """
    found = [
        _speaks(word, inside=m.start() > 0)
        for m in _WORD.finditer(label)
        if _stem(word := m.group(), "frame") is None
    ]
    return 50 + 45 * sum(found) / len(found) if found else 50.0


def _speaks(word: str, inside: bool) -> float:
    if inside and word[0].isupper():
        return _NAME
    if _stem(word, "concrete"):
        return 1.0
    if _stem(word, "abstract") or _IDEA.search(word.lower()):
        return -1.0
    return _UNKNOWN


def _stem(word: str, kind: str) -> str | None:
    """The form under which the word stands in one of the lists."""
    word = word.lower().removesuffix("'s").removesuffix("’s")
    forms = [word, *(word[: -len(e)] + to for e, to in _ENDINGS if word.endswith(e))]
    return next((form for form in forms if form in _words()[kind]), None)


@cache
def _words() -> dict[str, frozenset[str]]:
    text = files("steerback").joinpath("data").joinpath("concreteness.toml").read_text("utf-8")
    return {kind: frozenset(words.split()) for kind, words in tomllib.loads(text).items()}
