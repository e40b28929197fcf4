"""Off-topic text to go on with: does the model notice what stands there, or that it is pushed?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from steerback.protocols.base import Analysis, Cell, Direction, Entry, Inputs, Sheet, trial
from steerback.protocols.bench import Bench
from steerback.protocols.drift import DriftSettings, off_topic, per_direction
from steerback.protocols.twins import arms_of, comparisons
from steerback.records import Record, Records
from steerback.stats import summarise
from steerback.tomlfile import Table
from steerback.types import Intervention, Trial, derive_seed

UNSTEERED, STEERED, AFTER, OTHER = "unsteered", "steered", "steered after", "another's text"
MEASURES = ("multi_attempt", "cond_improvement", "esr", "implicit_recovery", "on_topic")
AGAINST = ((STEERED, UNSTEERED), (AFTER, UNSTEERED), (AFTER, STEERED), (OTHER, STEERED))
UNLIKE, USED, GAP = 1e9, 1e4, 10.0
"""What another latent's text costs: another question, each use before, each point of score; a word
more or less costs 1."""


class Settings(DriftSettings):
    per_direction: int = Field(
        default=10, ge=1, description="Most texts per direction, of the trials of esr."
    )
    words: int = Field(
        default=24,
        ge=4,
        description="Longest prefill in words; it ends with a sentence, and before any restart.",
    )
    score_gap: float = Field(
        default=10.0,
        ge=0,
        le=100,
        description="Most points between the first-attempt scores of a text and of the one that "
        "another latent wrote.",
    )


@dataclass(frozen=True)
class Prefix:
    """A text that its direction took off topic, and one of another direction to stand in for it."""

    question: str
    text: str
    tokens: int
    direction: str
    seed: int
    score: float
    """First-attempt score of the trial that the text is from."""
    other: str = ""
    """Empty: no text of another direction comes near enough."""
    other_direction: str = ""
    other_score: float = 0.0
    same_question: bool = False

    @property
    def length(self) -> int:
        return len(self.text.split())


class Prefill:
    name = "prefill"
    asks = "Given off-topic text to go on with, does the model restart, steered and unsteered?"
    settings: type[Table] = Settings
    needs: tuple[str, ...] = ("esr",)

    def before(self, bench: Bench, inputs: Inputs, settings: Table) -> Any:
        own = cast("Settings", settings)
        prefixes = _prefixes(bench, inputs, own)
        by_id = {d.id: d for d in inputs.directions}
        return [asdict(p) for p in with_others(prefixes, by_id, own.score_gap)]

    def plan(self, inputs: Inputs, settings: Table) -> list[Trial]:
        by_id = {d.id: d for d in inputs.directions}
        return [
            trial(
                self.name,
                arm,
                inputs,
                Cell(by_id[p.direction], p.question, p.seed),
                interventions,
                prefill=text,
            )
            for p in (Prefix(**found) for found in inputs.found[self.name])
            for arm, text, interventions in _arms(p, by_id[p.direction])
        ]

    def analyse(self, records: Records) -> Analysis:
        found = records.finding(self.name)[1]
        if found is None:
            return Analysis()
        prefixes = [Prefix(**p) for p in found]
        directions = {p.seed: p.direction for p in prefixes}
        arms = arms_of(records, self.name, (UNSTEERED, STEERED, AFTER, OTHER), directions)
        model = records.model(self.name)
        return Analysis(
            tuple(summarise(o, protocol=self.name, arm=a, model=model) for a, o in arms.items()),
            tuple(comparisons(arms, AGAINST, MEASURES)),
            (_texts(prefixes),),
        )


def _arms(prefix: Prefix, direction: Direction) -> list[tuple[str, str, list[Intervention]]]:
    """(arm, prefill, interventions)"""
    live = direction.add()
    arms = [
        (UNSTEERED, prefix.text, []),
        (STEERED, prefix.text, [live]),
        (AFTER, prefix.text, [direction.add(positions=f"from:{prefix.tokens}")]),
    ]
    return [*arms, (OTHER, prefix.other, [live])] if prefix.other else arms


def _prefixes(bench: Bench, inputs: Inputs, settings: Settings) -> list[Prefix]:
    def prefix(record: Record) -> Prefix | None:
        text = off_topic(record, settings)
        if not text:
            return None
        return Prefix(
            record.trial.question,
            text,
            len(bench.encode(text)),
            record.trial.cluster,
            derive_seed(inputs.seed, "prefill", record.trial.key),
            record.outcome.first or 0.0,
        )

    return per_direction(bench.records.of("esr"), prefix, settings.per_direction)


def with_others(
    prefixes: Sequence[Prefix], directions: Mapping[str, Direction], gap: float
) -> list[Prefix]:
    """Each with the text of another direction that comes nearest to it.

    That direction has another label and nothing to do with the question. First come texts that answer
    the same question, then the least used, then the nearest in score, then in length.
    """
    columns = _Columns.of(prefixes, directions)
    uses = np.zeros(len(prefixes))
    out = []
    for i, prefix in enumerate(prefixes):
        cost = columns.costs(i, gap) + USED * uses
        best = int(cost.argmin())
        if not np.isfinite(cost[best]):
            out.append(prefix)
            continue
        uses[best] += 1
        other = prefixes[best]
        out.append(
            replace(
                prefix,
                other=other.text,
                other_direction=other.direction,
                other_score=other.score,
                same_question=other.question == prefix.question,
            )
        )
    return out


@dataclass(frozen=True)
class _Columns:
    """The prefixes by what is compared."""

    prefixes: Sequence[Prefix]
    questions: NDArray[np.str_]
    scores: NDArray[np.float64]
    lengths: NDArray[np.float64]
    about: NDArray[np.str_]
    """Label of the direction, or its name."""
    skips: Sequence[frozenset[str]]
    """Questions that the direction has to do with."""

    @classmethod
    def of(cls, prefixes: Sequence[Prefix], directions: Mapping[str, Direction]) -> _Columns:
        own = [directions[p.direction] for p in prefixes]
        return cls(
            prefixes,
            np.array([p.question for p in prefixes]),
            np.array([p.score for p in prefixes]),
            np.array([p.length for p in prefixes], np.float64),
            np.array([d.label or d.id for d in own]),
            [d.skip for d in own],
        )

    def costs(self, i: int, gap: float) -> NDArray[np.float64]:
        """[prefixes]; infinite where it cannot stand in for prefix `i`."""
        question = self.prefixes[i].question
        apart = np.abs(self.scores - self.scores[i])
        related = np.array([question in skip for skip in self.skips])
        cost = UNLIKE * (self.questions != question) + GAP * apart
        cost += np.abs(self.lengths - self.lengths[i])
        return np.where((self.about == self.about[i]) | related | (apart > gap), np.inf, cost)


def _texts(prefixes: Sequence[Prefix]) -> Sheet:
    """How well the two kinds of text match."""
    matched = [p for p in prefixes if p.other]
    rows: list[tuple[Entry, ...]] = [
        ("texts that went off topic", len(prefixes)),
        ("mean length, words", _mean([p.length for p in prefixes])),
        ("mean first-attempt score of their trials", _mean([p.score for p in prefixes])),
        ("with a text of another latent", len(matched)),
        ("mean score of that one's trial", _mean([p.other_score for p in matched])),
        ("mean length of that one, words", _mean([len(p.other.split()) for p in matched])),
        ("of these, for the same question", sum(p.same_question for p in matched)),
    ]
    return Sheet("Texts to go on with", ("", "value"), tuple(rows))


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


PROTOCOL = Prefill()
