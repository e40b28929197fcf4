"""The parts of an episode (off topic, correction, on topic), in characters and in tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from steerback.judge.segment import restarts
from steerback.types import Attempt

Span = tuple[int, int]
Floats = NDArray[np.float64]
OFF_TOPIC, CORRECTION, ON_TOPIC, NOWHERE = 0, 1, 2, -1
NAMES = ("off topic", "correction", "on topic")
_STOP = re.compile(r"[.!?…]*")
_SENTENCE = re.compile(r"[.!?]+(?=\s|$)|$")


class Regions(NamedTuple):
    """Characters [start, end) of a response; in this order, and together all of it."""

    off_topic: Span
    correction: Span
    on_topic: Span


def episode(text: str, attempts: Sequence[Attempt]) -> Regions:
    """The regions of a response of two attempts or more, by the judge's offsets.

    Off topic is the first attempt. The correction begins where the second one does, and ends with the
    restart phrase found there and its full stop, or with the sentence if none is found. Later restarts
    count as on topic.
    """
    start = attempts[1].start
    phrase = next((r.end for r in restarts(text) if r.start <= start < r.end), None)
    found = _SENTENCE.search(text, start) if phrase is None else _STOP.match(text, phrase)
    end = found.end() if found else len(text)
    return Regions((0, start), (start, end), (end, len(text)))


def tokens(spans: Sequence[Span], regions: Regions) -> NDArray[np.int64]:
    """The region of each token [n] by its last character; NOWHERE for a token without characters, or
    behind the end of the text.

    A token often brings the space before its word, so that its first character may lie in the region
    before.
    """
    labels = np.full(len(spans), NOWHERE)
    for n, (start, end) in enumerate(spans):
        if end > start:
            inside = [i for i, (a, b) in enumerate(regions) if a <= end - 1 < b]
            labels[n] = inside[0] if inside else NOWHERE
    return labels


def sentence_starts(text: str, spans: Sequence[Span]) -> list[int]:
    """Tokens that bring the first character of a sentence; the one that opens the text is left out."""
    ends = [m.end() for m in _SENTENCE.finditer(text)]
    first = [next((i for i in range(e, len(text)) if not text[i].isspace()), None) for e in ends]
    places = {at for at in first if at is not None}
    return [n for n, (a, b) in enumerate(spans) if not places.isdisjoint(range(a, b))]


def means(values: NDArray[np.float32], labels: NDArray[np.int64]) -> Floats:
    """values [tokens, latents] -> [3, latents]: the mean in each region; NaN where it has no token."""
    out = np.full((len(NAMES), values.shape[1]), np.nan)
    for region in range(len(NAMES)):
        if (labels == region).any():
            out[region] = values[labels == region].mean(axis=0, dtype=np.float64)
    return out


def window(values: NDArray[np.float32], at: int, before: int, after: int) -> Floats:
    """values [tokens, latents] around token `at`: [before + 1 + after, latents], NaN beyond the ends."""
    out = np.full((before + 1 + after, values.shape[1]), np.nan)
    low, high = max(0, at - before), min(len(values), at + after + 1)
    if high > low:
        out[low - at + before : high - at + before] = values[low:high]
    return out
