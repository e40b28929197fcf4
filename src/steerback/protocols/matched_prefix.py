"""Steered continuation after corrective text and after other text on topic: what keeps it there?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
from pydantic import Field

from steerback import regions
from steerback.protocols.base import Analysis, Cell, Inputs, Sheet, trial
from steerback.protocols.bench import Bench
from steerback.protocols.drift import per_direction, whole_sentences
from steerback.protocols.twins import arms_of, comparisons
from steerback.records import Record, Records
from steerback.stats import Comparison, Cutoffs, Mean, Outcome, summarise
from steerback.stats.bootstrap import (
    RESAMPLES,
    Floats,
    Seed,
    bootstrap,
    cluster_codes,
    percentile_interval,
    ratio,
    sum_by_cluster,
)
from steerback.tomlfile import Table
from steerback.types import Trial, derive_seed

NOTHING, CORRECTIVE, SILENT, ON_TOPIC, WHOLE = (
    "nothing",
    "corrective text",
    "without the phrase",
    "on-topic text",
    "as it stood",
)
ARMS = (CORRECTIVE, SILENT, ON_TOPIC, WHOLE, NOTHING)
AGAINST = (
    (CORRECTIVE, ON_TOPIC),
    (SILENT, ON_TOPIC),
    (CORRECTIVE, SILENT),
    (ON_TOPIC, NOTHING),
    (CORRECTIVE, NOTHING),
    (WHOLE, CORRECTIVE),
)
SCORE = "score of what follows"


class Settings(Table):
    per_direction: int = Field(
        default=10, ge=1, description="Most corrected answers per direction, of the trials of esr."
    )
    words: int = Field(
        default=16,
        ge=4,
        description="Most words of the corrected answer that are given, in whole sentences, besides "
        "the restart phrase.",
    )


@dataclass(frozen=True)
class Episode:
    """A steered answer that restarted and came back, cut at a sentence after its restart."""

    question: str
    direction: str
    seed: int
    prefixes: Mapping[str, str]
    """By arm; every prefix ends with a sentence."""


class MatchedPrefix:
    name = "matched_prefix"
    asks = (
        "Does the model's own correction keep it on topic under steering, or would any such text?"
    )
    settings: type[Table] = Settings
    needs: tuple[str, ...] = ("baseline", "esr")

    def before(self, bench: Bench, inputs: Inputs, settings: Table) -> Any:
        own = cast("Settings", settings)
        plain = {(r.trial.question, r.trial.seed): r for r in bench.records.of("baseline")}

        def episode(record: Record) -> dict[str, Any] | None:
            twin = plain.get((record.trial.question, record.trial.seed))
            texts = prefixes(record, twin, own.words)
            seed = derive_seed(inputs.seed, self.name, record.trial.key)
            made = Episode(record.trial.question, record.trial.cluster, seed, texts)
            return asdict(made) if texts else None

        return per_direction(bench.records.of("esr"), episode, own.per_direction)

    def plan(self, inputs: Inputs, settings: Table) -> list[Trial]:
        by_id = {d.id: d for d in inputs.directions}
        return [
            trial(
                self.name,
                arm,
                inputs,
                Cell(by_id[e.direction], e.question, e.seed),
                [by_id[e.direction].add()],
                prefill=e.prefixes[arm],
            )
            for e in (Episode(**found) for found in inputs.found[self.name])
            for arm in ARMS
        ]

    def continued(self, trials: Sequence[Trial]) -> list[Trial]:
        return list(trials)

    def analyse(self, records: Records) -> Analysis:
        found = records.finding(self.name)[1]
        if found is None:
            return Analysis()
        episodes = [Episode(**e) for e in found]
        directions = {e.seed: e.direction for e in episodes}
        arms = arms_of(records, self.name, ARMS, directions)
        after = {
            arm: [_after(o, scores[o.trial_key]) for o in outcomes]
            for arm, outcomes in arms.items()
            for scores in [_scores(records, arm)]
        }
        model = records.model(self.name)
        sheets = [_texts(episodes)]
        if len(after) == len(ARMS):
            sheets.insert(0, _explained(after))
        return Analysis(
            tuple(summarise(o, protocol=self.name, arm=a, model=model) for a, o in arms.items()),
            tuple(
                _named(t, c) for t, c in comparisons(after, AGAINST, ("first_score", "on_topic"))
            ),
            tuple(sheets),
        )


# --- texts -----------------------------------------------------------------------------------


def prefixes(record: Record, twin: Record | None, words: int) -> dict[str, str]:
    """What each arm begins with; {} if the trial did not restart and come back, or if something is
    lacking."""
    attempts = record.verdict.attempts
    if not record.outcome.esr or twin is None or (attempts[1].score or 0) < Cutoffs().on_topic:
        return {}
    text = record.generation.text
    parts = regions.episode(text, attempts)
    start, end = parts.correction
    answer = whole_sentences(text[end : attempts[1].end], words)
    corrective = text[start:end] + answer
    on_topic = nearest_in_length(twin.generation.text, len(corrective.split()))
    if not answer or not on_topic:
        return {}
    return {
        NOTHING: "",
        CORRECTIVE: corrective.strip(),
        SILENT: answer.strip(),
        ON_TOPIC: on_topic,
        WHOLE: text[:end] + answer,
    }


def nearest_in_length(text: str, words: int) -> str:
    """Whole sentences from the start, as many as come nearest to so many words."""
    total = len(text.split())
    starts = {whole_sentences(text, n) for n in range(1, total + 1)} - {""}
    return min(starts, key=lambda s: (abs(len(s.split()) - words), len(s)), default="")


def _texts(episodes: Sequence[Episode]) -> Sheet:
    def length(arm: str) -> float | None:
        counts = [len(e.prefixes[arm].split()) for e in episodes]
        return float(np.mean(counts)) if counts else None

    rows = tuple((arm, len(episodes), length(arm)) for arm in ARMS)
    return Sheet("Texts that the answers begin with", ("arm", "texts", "mean length, words"), rows)


# --- what follows ----------------------------------------------------------------------------


def _scores(records: Records, arm: str) -> dict[str, float | None]:
    """Of all that follows the prefix, by trial."""
    return {
        r.outcome.trial_key: records.score_of_rest(r) for r in records.of("matched_prefix", arm)
    }


def _after(o: Outcome, score: float | None) -> Outcome:
    """The trial as if what follows the prefix were its answer."""
    return replace(o, missing=score is None, first=score, last=score, n_attempts=1, thirds=None)


def _named(title: str, c: Comparison) -> tuple[str, Comparison]:
    name = SCORE if c.measure == "first_score" else "what follows is on topic"
    return title, replace(c, measure=name)


def _explained(after: Mapping[str, Sequence[Outcome]]) -> Sheet:
    """How much of what corrective text does other text does too."""
    none, whole = after[NOTHING], after[CORRECTIVE]
    rows = [
        (f"{arm} / {CORRECTIVE}", share(none, after[arm], whole, above_floor=False))
        for arm in (ON_TOPIC, SILENT)
    ]
    rows += [
        (f"({arm} − {NOTHING}) / ({CORRECTIVE} − {NOTHING})", share(none, after[arm], whole))
        for arm in (ON_TOPIC, SILENT)
    ]
    return Sheet(
        "What the text explains",
        ("share of the score of what follows", "value"),
        tuple(rows),
        (
            f"{ON_TOPIC}: what any text on topic brings about; the rest is the correction's own",
            "mean scores over trials that all three arms scored; intervals resample directions",
        ),
    )


def share(
    nothing: Sequence[Outcome],
    part: Sequence[Outcome],
    whole: Sequence[Outcome],
    above_floor: bool = True,
    *,
    n_resamples: int = RESAMPLES,
    seed: Seed = 0,
) -> Mean:
    """(part - nothing) / (whole - nothing) of mean first scores over shared trials; without a floor,
    part / whole."""
    index = [{o.pair: o for o in arm if o.first is not None} for arm in (nothing, part, whole)]
    keys = sorted(index[0].keys() & index[1].keys() & index[2].keys())
    if not keys:
        return Mean(math.nan, math.nan, math.nan, 0, 0)
    scores = np.array([[arm[k].first for arm in index] for k in keys], np.float64)
    if not above_floor:
        scores[:, 0] = 0.0
    codes, n = cluster_codes([index[0][k].cluster for k in keys])
    sums = sum_by_cluster(codes, n, scores)

    def statistic(counts: Floats) -> Floats:
        floor, some, all_ = np.moveaxis(counts @ sums, -1, 0)
        return ratio(some - floor, all_ - floor)

    value = float(statistic(np.ones(n)))
    low, high = percentile_interval(bootstrap(statistic, n, n_resamples, seed), n)
    return Mean(value, min(low, value), max(high, value), len(keys), n, 0, "cluster bootstrap")


PROTOCOL = MatchedPrefix()
