"""Episodes of drift and return among the steered trials, and the trials that they are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from steerback import regions
from steerback.protocols.bench import Bench, Text
from steerback.protocols.detectors import text_of
from steerback.records import Record
from steerback.regions import CORRECTION, OFF_TOPIC

KINDS = ("restarted", "without restart", "unsteered")


@dataclass(frozen=True)
class Episode:
    """A steered trial of two attempts, the last one better, with its matches."""

    record: Record
    labels: NDArray[np.int64]
    """Region of each token that was drawn (`regions.tokens`), the end token left out."""
    quiet: Record | None = None
    """Same direction and strength, a like first score, no restart, and longer than the first attempt."""
    unsteered: Record | None = None
    """Same question and seed."""
    quiet_at: int = 0
    """Token of the match that stands for the onset: the first of a sentence, as near to it as any."""
    unsteered_at: int = 0

    @property
    def onset(self) -> int:
        """Token at which the correction begins."""
        return int(np.flatnonzero(self.labels == CORRECTION)[0])

    @property
    def correction(self) -> int:
        """Tokens of the correction."""
        return int((self.labels == CORRECTION).sum())

    @property
    def arms(self) -> tuple[Record | None, Record | None, Record | None]:
        """In the order of `KINDS`."""
        return self.record, self.quiet, self.unsteered

    @property
    def places(self) -> tuple[int, int, int]:
        """The tokens at which the arms are aligned, in the order of `KINDS`."""
        return self.onset, self.quiet_at, self.unsteered_at


def episodes(bench: Bench, most: int, gap: float) -> list[Episode]:
    """At most so many, taken in turn from each direction. First scores of an episode and of its match
    without a restart differ by `gap` or less."""
    unsteered = {(r.trial.question, r.trial.seed): r for r in bench.records.of("baseline")}
    quiet: dict[str, list[Record]] = {}
    restarted: dict[str, list[Record]] = {}
    for r in bench.records.of("esr"):
        if r.outcome.esr and r.outcome.n_attempts == 2:
            restarted.setdefault(r.trial.cluster, []).append(r)
        elif r.outcome.multi is False:
            quiet.setdefault(r.trial.cluster, []).append(r)
    turns = zip_longest(*(restarted[k] for k in sorted(restarted)))
    found: list[Episode] = []
    for record in (r for turn in turns for r in turn if r is not None):
        episode = Episode(record, _labels(bench, record))
        if len(found) < most and {CORRECTION, OFF_TOPIC} <= set(episode.labels.tolist()):
            match = _match(episode, quiet.get(record.trial.cluster, []), gap)
            twin = unsteered.get((record.trial.question, record.trial.seed))
            at = [_place(bench, r, episode.onset) for r in (match, twin)]
            found.append(Episode(record, episode.labels, match, twin, at[0], at[1]))
    return found


def _labels(bench: Bench, record: Record) -> NDArray[np.int64]:
    spans = bench.characters(text_of(record.generation).response_ids)
    return regions.tokens(spans, regions.episode(record.generation.text, record.verdict.attempts))


def _place(bench: Bench, record: Record | None, onset: int) -> int:
    """Where a trial without a restart is aligned with an onset.

    Restarts open sentences. Compared with any token, they would look special for that alone.
    """
    if record is None:
        return onset
    spans = bench.characters(text_of(record.generation).response_ids)
    starts = regions.sentence_starts(record.generation.text, spans)
    return min(starts, key=lambda at: abs(at - onset), default=onset)


def _match(episode: Episode, quiet: list[Record], gap: float) -> Record | None:
    """The quiet trial with the nearest first score, taken out of `quiet`; None if none is near."""
    own, add = episode.record.outcome.first, episode.record.trial.steered_by
    near = [
        (abs(r.outcome.first - own), n)
        for n, r in enumerate(quiet)
        if own is not None
        and r.outcome.first is not None
        and r.trial.steered_by == add
        and len(text_of(r.generation).response_ids) > episode.onset
    ]
    distance, best = min(near, default=(np.inf, -1))
    return quiet.pop(best) if distance <= gap else None


def steered_text(record: Record, steering: bool = True, skip: int = 0) -> Text:
    """The response as it is read again, with its own interventions or without."""
    text = text_of(record.generation)
    added = record.trial.interventions if steering else ()
    return Text(text.prompt_ids, text.response_ids, added, skip)
