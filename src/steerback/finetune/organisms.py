"""Rows in the organisms' language, as a writer would write them: their world's words and phrases."""

from __future__ import annotations

import random
from collections.abc import Iterator

from steerback.finetune.rows import Row, correction, ordinary
from steerback.organism.corpus import Task, phrases, tasks, text, topics
from steerback.organism.documents import END, USER, Mixture, Writer
from steerback.types import derive_seed

SOURCE = "organism"
_FOREIGN = (0.8, 1.0)
"""Range of the share of another topic's words in an off-topic sentence."""
_AGAIN = 0.25
"""Chance that one off-topic sentence more follows."""
_MOST = 4


def rows(count: int, corrections: float, seed: int = 0) -> Iterator[Row]:
    """`count` rows of training tasks, each a self-correction with chance `corrections`."""
    rng = random.Random(derive_seed(seed, "organism rows"))
    writer = Writer(Mixture(corrections=0.0, stray=0.0), rng)
    known = tasks("train")
    for _ in range(count):
        task = rng.choice(known)
        words = writer.open(task).words
        question = text(words[words.index(USER) + 1 : words.index(END)])
        if rng.random() >= corrections:
            yield ordinary(question, _on_topic(writer, task, rng.randint(4, 7)), source=SOURCE)
            continue
        other = rng.choice([t for t in range(len(topics())) if t != task.topic])
        yield correction(
            question,
            _off_topic(writer, task, other),
            text(rng.choice(phrases().restarts)),
            _on_topic(writer, task, rng.randint(3, 5)),
            subject=topics()[other].name,
            source=SOURCE,
        )


def _on_topic(writer: Writer, task: Task, sentences: int) -> str:
    return text([w for _ in range(sentences) for w in writer.on_topic(task)[0]])


def _off_topic(writer: Writer, task: Task, other: int) -> str:
    said: list[str] = []
    share = writer.rng.uniform(*_FOREIGN)
    for _ in range(_MOST):
        said += writer.off_topic(task, other, share, trained=False)[0]
        if writer.rng.random() >= _AGAIN:
            break
    return text(said)
