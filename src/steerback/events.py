"""Paired comparisons of any yes-or-no fact about a trial, beyond the named measures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from steerback.stats import Comparison, Outcome, compare

Event = Callable[[Outcome], bool | None]
"""Whether it happened; None where that is not known."""


def explicit(o: Outcome) -> bool | None:
    """Restarted in so many words, and improved."""
    return o.esr


def silent(o: Outcome) -> bool | None:
    """Recovered without a restart: the last third of the answer beats the first."""
    return False if o.multi else o.implicit


def either(o: Outcome) -> bool | None:
    said, unsaid = explicit(o), silent(o)
    return True if said or unsaid else None if said is None or unsaid is None else False


def compare_event(
    a: Sequence[Outcome], b: Sequence[Outcome], event: Event, name: str
) -> Comparison:
    """`stats.compare` of the share of trials in which `event` happened; unknown is missing."""
    arms = [[_as_restart(o, event(o)) for o in arm] for arm in (a, b)]
    return replace(compare(arms[0], arms[1], "multi_attempt"), measure=name)


def _as_restart(o: Outcome, happened: bool | None) -> Outcome:
    """A stand-in whose multi-attempt measure is the event."""
    return replace(o, missing=happened is None, n_attempts=2 if happened else 1)
