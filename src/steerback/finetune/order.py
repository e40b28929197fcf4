"""Which rows are trained on, in which order and company. A function of the seed alone, so that a
training that was killed goes on where it stood."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from steerback.errors import UserError
from steerback.finetune.overlap import normalised
from steerback.finetune.rows import Row
from steerback.types import derive_seed

_POOL = 32
"""Batches whose rows are sorted by length together, so that little is padded."""


@dataclass(frozen=True)
class Batch:
    """One forward pass."""

    rows: tuple[int, ...]
    step: int
    """0-based step of the optimiser that it belongs to."""
    epoch: int
    last: bool
    """Whether the step ends with it."""


def mixed(rows: Sequence[Row], share: float | None, most: int | None, seed: int) -> list[Row]:
    """As many rows as there are (at most `most`) with this share of self-corrections, shuffled.

    Which rows are taken of each kind depends on the seed alone: mixes of one file share them.
    Raises UserError if the file lacks one kind.
    """
    rng = np.random.default_rng(derive_seed(seed, "mix"))
    kinds = [[r for r in rows if r.correction], [r for r in rows if not r.correction]]
    kinds = [[kind[i] for i in rng.permutation(len(kind))] for kind in kinds]
    if share is None:
        share = len(kinds[0]) / len(rows)
    shares = (share, 1 - share)
    for kind, part, name in zip(
        kinds, shares, ("self-corrections", "ordinary answers"), strict=True
    ):
        if part > 0 and not kind:
            raise UserError(f"the rows hold no {name}, of which a share of {part:g} is wanted")
    total = min(len(k) / p for k, p in zip(kinds, shares, strict=True) if p > 0)
    total = min(total, math.inf if most is None else most)
    chosen = [r for k, p in zip(kinds, shares, strict=True) for r in k[: round(total * p)]]
    return [chosen[i] for i in rng.permutation(len(chosen))]


def split(rows: Sequence[Row], validation: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Rows to train and to validate on; all rows of one question go to one side."""
    questions = sorted({normalised(r.question) for r in rows})
    rng = np.random.default_rng(derive_seed(seed, "validation"))
    kept = {
        questions[i] for i in rng.permutation(len(questions))[: int(validation * len(questions))]
    }
    sides: tuple[list[Row], list[Row]] = ([], [])
    for row in rows:
        sides[normalised(row.question) in kept].append(row)
    return sides


def steps(n: int, rows: int, accumulate: int, epochs: int) -> int:
    """Steps of the optimiser."""
    return epochs * math.ceil(math.ceil(n / rows) / accumulate)


def batches(
    lengths: Sequence[int], rows: int, accumulate: int, epochs: int, seed: int
) -> Iterator[Batch]:
    """All forward passes. lengths: tokens of each row."""
    per_epoch = steps(len(lengths), rows, accumulate, 1)
    for epoch in range(epochs):
        groups = _epoch(lengths, rows, derive_seed(seed, "order", epoch))
        for n, group in enumerate(groups):
            last = n == len(groups) - 1 or n % accumulate == accumulate - 1
            yield Batch(tuple(group), epoch * per_epoch + n // accumulate, epoch, last)


def _epoch(lengths: Sequence[int], rows: int, seed: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(lengths)).tolist()
    groups: list[list[int]] = []
    for start in range(0, len(order), rows * _POOL):
        pool = sorted(order[start : start + rows * _POOL], key=lambda i: lengths[i])
        groups += [pool[at : at + rows] for at in range(0, len(pool), rows)]
    return [groups[i] for i in rng.permutation(len(groups))]
