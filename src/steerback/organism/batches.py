"""Documents as padded arrays, rows of about the same length together."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steerback.organism.documents import Document, Mixture, Writer
from steerback.organism.vocabulary import PAD, ids

_POOL = 512


@dataclass(frozen=True)
class Batch:
    tokens: NDArray[np.int64]
    """[rows, length], padded at the right."""
    weights: NDArray[np.float32]
    """[rows, length]: loss weights."""
    pushed: NDArray[np.bool_]
    """[rows]: whether the row is trained under a push."""
    other: NDArray[np.int64]
    """[rows]: topic that a push of the row points to."""
    response: NDArray[np.int64]
    """[rows]: index of the first token of the answer."""
    count: int
    """Tokens without padding."""


def pack(documents: list[Document]) -> Batch:
    lookup = ids()
    shape = (len(documents), max(len(d.words) for d in documents))
    tokens = np.full(shape, lookup[PAD], np.int64)
    weights = np.zeros(shape, np.float32)
    for row, doc in enumerate(documents):
        n = len(doc.words)
        tokens[row, :n] = [lookup[w] for w in doc.words]
        weights[row, :n] = doc.weights
    return Batch(
        tokens=tokens,
        weights=weights,
        pushed=np.array([d.pushed for d in documents]),
        other=np.array([d.other for d in documents]),
        response=np.array([d.response for d in documents]),
        count=sum(len(d.words) for d in documents),
    )


def batches(mixture: Mixture, seed: int, size: int, total: int) -> Iterator[Batch]:
    """Batches of at most `size` tokens (padding counted) until `total` tokens are given out."""
    rng = random.Random(seed)
    writer = Writer(mixture, rng)
    done = 0
    while done < total:
        pool = sorted((writer.document() for _ in range(_POOL)), key=lambda d: len(d.words))
        groups = _group(pool, size)
        rng.shuffle(groups)
        for group in groups:
            batch = pack(group)
            done += batch.count
            yield batch


def _group(documents: list[Document], size: int) -> list[list[Document]]:
    """Cut a list sorted by length so that rows times the longest row stay within `size`."""
    groups: list[list[Document]] = [[]]
    for doc in documents:
        if groups[-1] and (len(groups[-1]) + 1) * len(doc.words) > size:
            groups.append([])
        groups[-1].append(doc)
    return groups
