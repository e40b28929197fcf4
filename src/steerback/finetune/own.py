"""Rows from a model's own text: what it writes under a push, a phrase that says so, its own answer.

The off-topic part is the model's under the very intervention that the row names, so training under
steering can put the same one in force (`directions = "row"`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from steerback.engine.hf import HFEngine
from steerback.errors import UserError
from steerback.finetune import writer
from steerback.finetune.gather import attempt_starts
from steerback.finetune.pushes import Candidate
from steerback.finetune.rows import Row, correction, ordinary
from steerback.judge.base import Judge, Request
from steerback.judge.exact import question_topic
from steerback.lab import SOURCE
from steerback.organism.corpus import phrases, text
from steerback.stats.outcomes import is_degraded
from steerback.types import Intervention, Message, Sampling, Trial, derive_seed

OWN = "the model's own text"
ON_TOPIC, OFF_TOPIC = 60.0, 40.0
"""Scores (0-100) that an answer has at least, and an off-topic part at most."""
_LONGEST = 40
"""Sentences of an answer."""
_SENTENCE = re.compile(r"[^.!?]*[.!?]+[\"')\]]*\s*")


@dataclass(frozen=True)
class Speech:
    """Who speaks, and how."""

    engine: HFEngine
    judge: Judge
    sampling: Sampling
    directions: tuple[Candidate, ...]
    layer: int
    strength: tuple[float, float]
    """Range that strengths are drawn from, in median residual norms."""
    most: int = 3
    """Longest off-topic part, in sentences."""


def write(
    speech: Speech, questions: Sequence[str], count: int, corrections: float, seed: int = 0
) -> tuple[list[Row], Counter[str]]:
    """Rows, questions in turn, and how many texts could not be used for what reason."""
    if not speech.directions:
        raise UserError("there is no direction to steer along; lower steering.held_out")
    plan = _plan(speech, questions, count, corrections, seed)
    answers = _say(speech, [answer for answer, _ in plan], None)
    pushed = _say(speech, [p for _, p in plan if p is not None], speech.most)
    rows: list[Row] = []
    failed: Counter[str] = Counter()
    for asked, push in plan:
        row = _row(speech, asked, push, answers[asked.key], pushed[push.key] if push else None)
        if isinstance(row, str):
            failed[row] += 1
        else:
            rows.append(row)
    return rows, failed


@dataclass(frozen=True)
class Said:
    """Whole sentences of a text; empty if it is degraded, restarts or has none."""

    text: str
    score: float | None


def _row(
    speech: Speech, asked: Trial, push: Trial | None, answer: Said, off: Said | None
) -> Row | str:
    """The row, or why there is none."""
    if not answer.text or (answer.score is not None and answer.score < ON_TOPIC):
        return "answers off the topic, broken or without an end"
    if off is None or push is None:
        return ordinary(asked.question, answer.text, source=OWN)
    if not off.text:
        return "steered texts that were broken, or restarted by themselves"
    if off.score is None or off.score > OFF_TOPIC:
        return "steered texts that stayed on the topic"
    add = push.steered_by
    assert add is not None
    label = next(c.label for c in speech.directions if c.index == add.index)
    phrase = _phrase(asked.question, push.seed)
    return correction(
        asked.question, off.text, phrase, answer.text, subject=label, push=add, source=OWN
    )


def _sentences(text: str, most: int) -> str:
    if is_degraded(text) or attempt_starts(text):
        return ""
    return "".join(_SENTENCE.findall(text)[:most]).strip()


def _phrase(question: str, seed: int) -> str:
    if question_topic(question) is not None:
        known = [text(words) for words in phrases().restarts]
    else:
        known = list(writer.packaged().acknowledgements)
    return known[seed % len(known)]


def _plan(
    speech: Speech, questions: Sequence[str], count: int, corrections: float, seed: int
) -> list[tuple[Trial, Trial | None]]:
    """(unsteered trial, steered one of the same question or None)"""
    rng = np.random.default_rng(derive_seed(seed, "own text"))
    order = rng.permutation(len(questions))
    out: list[tuple[Trial, Trial | None]] = []
    for n in range(count):
        question = questions[order[n % len(questions)]]
        push = None
        if rng.random() < corrections:
            chosen = speech.directions[int(rng.integers(len(speech.directions)))]
            value = float(rng.uniform(*speech.strength))
            push = Intervention("add", SOURCE, chosen.index, value, speech.layer, "resid")
        answer = _trial(speech, question, derive_seed(seed, "answer", n), ())
        steered = (
            _trial(speech, question, derive_seed(seed, "steered", n), (push,)) if push else None
        )
        out.append((answer, steered))
    return out


def _trial(speech: Speech, question: str, seed: int, live: tuple[Intervention, ...]) -> Trial:
    return Trial(
        protocol="finetune data",
        arm="steered" if live else "unsteered",
        model=speech.engine.name,
        question=question,
        messages=(Message("user", question),),
        sampling=speech.sampling,
        seed=seed,
        interventions=live,
    )


def _say(speech: Speech, trials: Sequence[Trial], most: int | None) -> dict[str, Said]:
    """Texts with the scores of their first attempts, by trial key; of each the first 1 to `most`
    sentences, or all."""
    texts = {}
    for generation in speech.engine.generate(trials):
        key = generation.trial_key
        few = _LONGEST if most is None else 1 + int(key[:8], 16) % most
        texts[key] = _sentences(generation.text, few)
    requests = [Request(t.key, t.question, texts[t.key]) for t in trials]
    verdicts = speech.judge.judge(requests)
    return {
        t.key: Said(texts[t.key], v.attempts[0].score if v.status == "ok" and v.attempts else None)
        for t, v in zip(trials, verdicts, strict=True)
    }
