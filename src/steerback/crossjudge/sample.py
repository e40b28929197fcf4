"""Which trials are regraded: all with several attempts, and some of the others from every arm."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest

from steerback.judge.segment import segment
from steerback.records import Record
from steerback.types import derive_seed


def choose(records: Iterable[Record], per_model: int, seed: int) -> list[Record]:
    """Every trial in which the run's judge or `segment` sees several attempts, and `per_model` of the
    others per model, spread evenly over its arms. The order of `records` does not matter."""
    several: list[Record] = []
    others: dict[str, dict[tuple[str, str], list[Record]]] = {}
    for record in records:
        if has_several(record):
            several.append(record)
        else:
            trial = record.trial
            arms = others.setdefault(trial.model, {})
            arms.setdefault((trial.protocol, trial.arm), []).append(record)
    drawn = [r for arms in others.values() for r in _spread(arms, seed)[:per_model]]
    return sorted([*several, *drawn], key=lambda r: r.trial.key)


def has_several(record: Record) -> bool:
    return len(record.verdict.attempts) > 1 or len(segment(record.generation.text)) > 1


def _spread(arms: dict[tuple[str, str], list[Record]], seed: int) -> Sequence[Record]:
    """One of each arm in turn, each arm in an order that its trials' keys and the seed decide."""
    shuffled = [
        sorted(arms[name], key=lambda r: derive_seed(seed, "crossjudge", r.trial.key))
        for name in sorted(arms)
    ]
    return [r for row in zip_longest(*shuffled) for r in row if r is not None]
