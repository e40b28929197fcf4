"""Rows written by a language model: any that can judge can write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path

import numpy as np

from steerback import tomlfile
from steerback.errors import UserError
from steerback.finetune.rows import Row, correction, ordinary
from steerback.judge.ask import Asker, Failed, Question
from steerback.judge.model import ModelJudge
from steerback.judge.parse import BadAnswer, the_object
from steerback.judge.registry import make_judge
from steerback.types import derive_seed


@dataclass(frozen=True)
class Sayings:
    """What the packaged rows are made of."""

    subjects: tuple[str, ...]
    acknowledgements: tuple[str, ...]


def packaged() -> Sayings:
    data = tomlfile.parse((files("steerback") / "data" / "subjects.toml").read_text("utf-8"))
    return Sayings(tuple(data["subjects"]), tuple(data["acknowledgements"]))


def subjects(file: Path | None) -> tuple[str, ...]:
    """Off-topic subjects, one a line of the file, or the packaged ones. UserError without any."""
    if file is None:
        return packaged().subjects
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error}); write one subject a line") from None
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        raise UserError(f"{file}: names no subject; write one a line")
    return found


def asker(name: str, cache: Path, **settings: object) -> Asker:
    """The model behind a judge's name (hf:MODEL or PROVIDER/MODEL). Its answers are kept in `cache`.

    Raises UserError for a judge that is no language model.
    """
    judge = make_judge(name, cache=cache, temperature=1.0, **settings)
    if not isinstance(judge, ModelJudge):
        raise UserError(
            f"{name!r} cannot write; name a model such as hf:google/gemma-2-9b-it or "
            "anthropic/claude-haiku-4-5"
        )
    return judge.asker


def write(
    asker: Asker,
    questions: Sequence[str],
    count: int,
    corrections: float,
    about: Sequence[str],
    seed: int = 0,
) -> tuple[list[Row], Counter[str]]:
    """Rows, questions in turn, and how many answers could not be used for what reason."""
    plan = list(_plan(questions, count, corrections, about, seed))
    times: Counter[str] = Counter()
    asked = []
    for q, subject in plan:
        prompt = _prompt(q, subject, times[q] if not subject else 0)
        times[q] += not subject
        asked.append(Question(prompt, partial(_read, q, subject, asker.model)))
    rows: list[Row] = []
    failed: Counter[str] = Counter()
    for result in asker.ask(asked):
        if isinstance(result, Failed):
            failed["answers of the writer that could not be used"] += 1
        else:
            rows.append(result)
    return rows, failed


def _plan(
    questions: Sequence[str], count: int, corrections: float, about: Sequence[str], seed: int
) -> Iterator[tuple[str, str]]:
    """(question, subject; empty for an ordinary answer), no pair twice where it can be helped."""
    rng = np.random.default_rng(derive_seed(seed, "writer"))
    order = rng.permutation(len(questions))
    off = int(rng.integers(len(about)))
    for n in range(count):
        question = questions[order[n % len(questions)]]
        subject = about[(off + n + n // len(questions)) % len(about)]
        yield question, subject if rng.random() < corrections else ""


def _prompt(question: str, subject: str, again: int) -> str:
    """again: how many ordinary answers to the question were asked for before: equal prompts would get
    one answer."""
    name = "finetune_writer.md" if subject else "finetune_writer_plain.md"
    text = (files("steerback") / "data" / name).read_text("utf-8")
    # the subject first: a question may hold braces of its own
    other = f"Word it unlike the {again} answers to it before.\n\n" if again else ""
    text = text.replace("{subject}", subject).replace("{again}", other)
    return text.replace("{question}", question)


def _read(question: str, subject: str, model: str, answer: str) -> Row:
    names = ("off_topic", "acknowledgement", "answer") if subject else ("answer",)
    said = the_object(answer, "answer")
    for name in names:
        if not isinstance(said.get(name), str) or not said[name].strip():
            raise BadAnswer(f"'{name}' is no text")
    parts = [" ".join(said[name].split()) for name in names]
    make: Callable[..., Row] = correction if subject else ordinary
    facts = {"subject": subject} if subject else {}
    return make(question, *parts, source=model, **facts)
