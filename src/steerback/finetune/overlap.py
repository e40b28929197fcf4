"""What training must not share: questions with an evaluation, and rows with one another."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from steerback.errors import UserError
from steerback.finetune.rows import Row
from steerback.prompts import ORGANISM, PACKAGED, load_prompts

SHINGLE = 3
"""Words in a row that are compared as one."""
_BANDS, _DEPTH = 16, 4
"""Of the MinHash: two texts that share 0.8 of their shingles meet in some band with probability
1 - (1 - 0.8^4)^16 = 0.9998; what meets is then compared exactly."""
_PRIME = (1 << 31) - 1


def normalised(text: str) -> str:
    """The words alone: case, accents' forms, punctuation and spacing make no other question."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+", plain))


def evaluation_questions(others: Iterable[str] = ()) -> dict[str, str]:
    """Normalised question -> the set that it is in: all packaged sets, and those named in `others`."""
    found: dict[str, str] = {}
    for spec in (*PACKAGED, *ORGANISM, *others):
        for question in load_prompts(spec).questions:
            found.setdefault(normalised(question), spec)
    return found


def refuse_shared(
    questions: Sequence[str], evaluation: Mapping[str, str], where: str = "row"
) -> None:
    """Raises UserError naming the first question that some evaluation asks too."""
    for number, question in enumerate(questions, 1):
        spec = evaluation.get(normalised(question))
        if spec is not None:
            raise UserError(
                f"{where} {number} asks {question[:60]!r}, a question of the evaluation set "
                f"{spec!r}; what is trained on cannot be evaluated on: leave it out"
            )


def distinct(rows: Sequence[Row], share: float = 0.8) -> list[Row]:
    """Rows without those whose response shares `share` or more of its three-word sequences (Jaccard)
    with an earlier row's."""
    sets = [_shingles(row) for row in rows]
    buckets: list[dict[int, list[int]]] = [{} for _ in range(_BANDS)]
    kept: list[int] = []
    for i, bands in enumerate(_signatures(sets)):
        near = {j for bucket, key in zip(buckets, bands, strict=True) for j in bucket.get(key, ())}
        if any(_jaccard(sets[i], sets[j]) >= share for j in near):
            continue
        kept.append(i)
        for bucket, key in zip(buckets, bands, strict=True):
            bucket.setdefault(key, []).append(i)
    return [rows[i] for i in kept]


def _shingles(row: Row) -> frozenset[int]:
    words = normalised(row.response).split()
    runs = zip(*(words[k:] for k in range(min(SHINGLE, len(words)))), strict=False)
    return frozenset(zlib.crc32(" ".join(run).encode()) for run in runs)


def _jaccard(a: frozenset[int], b: frozenset[int]) -> float:
    return len(a & b) / len(a | b) if a or b else 1.0


def _signatures(sets: Sequence[frozenset[int]]) -> Iterable[list[int]]:
    """Keys of each set's bands: hashes of the smallest values under random linear maps."""
    rng = np.random.default_rng(0)
    maps: NDArray[np.int64] = rng.integers(1, _PRIME, (2, _BANDS * _DEPTH))
    for found in sets:
        values = np.fromiter(found or {0}, np.int64) % _PRIME
        least = ((values[:, None] * maps[0] + maps[1]) % _PRIME).min(axis=0)
        yield [hash(tuple(band)) for band in least.reshape(_BANDS, _DEPTH).tolist()]
