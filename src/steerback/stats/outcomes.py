"""What happened in one trial: a response and its verdict become one frozen `Outcome`.

Rule for what counts: a trial needs a verdict with status "ok" and a valid score (finite, 0-100) on its
first and on its last attempt. Attempts between the two may lack a score. Any other trial is `missing`:
excluded and counted, never scored as a failure.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from steerback.types import Attempt, Verdict

ThreeWay = Literal["on_topic", "steered", "degraded"]
Thirds = tuple[float | None, float | None]

_WORD = re.compile(r"\w+(?:['’\-]\w+)*")
_RUN = 5
"""Repeats in a row that make an output degraded (the paper's code)."""


@dataclass(frozen=True)
class Cutoffs:
    """Where a score becomes a category; both are stated in every report that uses them."""

    on_topic: float = 50.0
    """Score (0-100) of the last attempt from which an answer counts as on topic: the valley between
    the two modes of steered answers (about 20 and about 85)."""
    implicit_margin: float = 20.0
    """Points by which the last third of an answer must beat the first for an implicit recovery."""


@dataclass(frozen=True)
class Outcome:
    """One trial. None means unknown or not applicable, never false."""

    trial_key: str
    cluster: str
    """Direction (or question) whose trials are correlated: the unit that is resampled."""
    missing: bool
    """No attempt, or no valid score on the first or last one."""
    n_attempts: int
    degraded: bool
    """Known for missing trials too: it needs the text alone."""
    first: float | None = None
    last: float | None = None
    thirds: Thirds | None = None
    """Scores (0-100) of the first and last third of the answer, if both are valid."""
    strength: float | None = None
    pair: str = ""
    """Name of the trial's twin in another arm: same direction, strength, question and seed."""
    prefilled: bool = False
    """The first attempt begins with a text that was given, so that its score is not the model's."""
    cutoffs: Cutoffs = Cutoffs()

    @property
    def multi(self) -> bool | None:
        """Two attempts or more."""
        return None if self.missing else self.n_attempts >= 2

    @property
    def delta(self) -> float | None:
        """Last score minus first; 0 for a single attempt."""
        return None if self.first is None or self.last is None else self.last - self.first

    @property
    def improved(self) -> bool | None:
        """Last above first, strictly; None for a single attempt."""
        return None if self.delta is None or not self.multi else self.delta > 0

    @property
    def esr(self) -> bool | None:
        """Restarted and improved."""
        return None if self.missing else bool(self.improved)

    @property
    def three_way(self) -> ThreeWay | None:
        """Degraded by its text; else on topic or steered by the score of the last attempt."""
        if self.last is None:
            return None
        if self.degraded:
            return "degraded"
        return "on_topic" if self.last >= self.cutoffs.on_topic else "steered"

    @property
    def implicit(self) -> bool | None:
        """The last third beats the first by the margin, in one attempt (no restart phrase)."""
        return self._drift(1)

    @property
    def implicit_decline(self) -> bool | None:
        """The mirror image, first third above last: how often noise alone moves a score that far."""
        return self._drift(-1)

    def _drift(self, sign: int) -> bool | None:
        if self.missing or self.thirds is None:
            return None
        start, end = self.thirds
        if start is None or end is None:
            return None
        return self.n_attempts == 1 and sign * (end - start) >= self.cutoffs.implicit_margin


def outcome(
    trial_key: str,
    cluster: str,
    verdict: Verdict,
    text: str,
    thirds: Thirds | None = None,
    *,
    strength: float | None = None,
    pair: str = "",
    prefilled: bool = False,
    cutoffs: Cutoffs | None = None,
) -> Outcome:
    """The outcome of one judged response.

    `thirds`: the judge's scores of the first and last third of the answer, if it was asked for them.
    """
    first = last = None
    if verdict.status == "ok" and verdict.attempts:
        first, last = _valid(verdict.attempts[0]), _valid(verdict.attempts[-1])
    missing = first is None or last is None
    return Outcome(
        trial_key=trial_key,
        cluster=cluster,
        missing=missing,
        n_attempts=len(verdict.attempts),
        degraded=is_degraded(text),
        first=None if missing else first,
        last=None if missing else last,
        thirds=thirds if thirds is not None and all(map(_in_range, thirds)) else None,
        strength=strength,
        pair=pair,
        prefilled=prefilled,
        cutoffs=cutoffs or Cutoffs(),
    )


def _valid(attempt: Attempt) -> float | None:
    return attempt.score if _in_range(attempt.score) else None


def _in_range(score: float | None) -> bool:
    return score is not None and math.isfinite(score) and 0 <= score <= 100


def is_degraded(text: str) -> bool:
    """Whether some word of more than one character stands 5 or more times in a row.

    A word is a run of letters, digits and underscores, with inner apostrophes and hyphens; case and
    all that stands between words (spaces, punctuation, line ends) are ignored. A word of one
    character between two others breaks the run.
    """
    run, previous = 0, ""
    for match in _WORD.finditer(text):
        word = match.group().casefold()
        run = run + 1 if word == previous else 1
        if run >= _RUN and len(word) > 1:
            return True
        previous = word
    return False
