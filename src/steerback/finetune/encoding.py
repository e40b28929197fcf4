"""Rows as tokens, each with its weight in the loss."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steerback import chat
from steerback.errors import UserError
from steerback.finetune.rows import ACKNOWLEDGEMENT, ANSWER, OFF_TOPIC, PROMPT, Row, Span
from steerback.types import Message

PUBLISHED = (ACKNOWLEDGEMENT, ANSWER)
"""What the paper trains on: the prompt and the off-topic part are masked."""
_SENTENCE_END = re.compile(r"[.!?][\"')\]*]*\s*$")


_Tokens = tuple[list[int], list[int], list[Span]]


@dataclass(frozen=True)
class Example:
    ids: NDArray[np.int32]
    """[tokens]"""
    weights: NDArray[np.float32]
    """[tokens]: weight of each token's own loss; 0 is masked. The first one has no loss."""
    first: int
    """Index of the first token of the response."""


class Encoder:
    """Tokens of rows for one tokenizer.

    The prompt is what the engine gives the model, the response is encoded as a prefill is, and ends
    with what the chat template puts behind an answer (part of the answer).
    """

    def __init__(
        self,
        tokenizer: chat.Tokenizer,
        *,
        trained: Collection[str] = PUBLISHED,
        sentence_weight: float = 1.0,
        longest: int = 4096,
    ) -> None:
        self.tokenizer, self.trained, self.longest = tokenizer, frozenset(trained), longest
        self.sentence_weight = sentence_weight
        """Loss weight of the first token after a sentence: there it is decided whether to restart."""
        self.end = chat.end_of_turn(tokenizer)
        self._last: tuple[str, _Tokens] | None = None

    def along(self, row: Row) -> Example:
        """With the loss on the off-topic part too."""
        return self._example(row, "row", self.trained | {OFF_TOPIC})

    def __call__(self, row: Row, where: str = "row") -> Example:
        """Raises UserError, which begins with `where`, for a row longer than the longest."""
        return self._example(row, where, self.trained)

    def _example(self, row: Row, where: str, trained: frozenset[str]) -> Example:
        prompt, ids, places = self._tokens(row)
        n = len(prompt) + len(ids) + len(self.end)
        if n > self.longest:
            raise UserError(
                f"{where} has {n} tokens; the longest allowed is {self.longest}: shorten it, or "
                "raise `longest`"
            )
        weights = np.zeros(n, np.float32)
        if PROMPT in trained:
            weights[: len(prompt)] = 1
        spans = [span for part, span in row.response_spans().items() if part in trained]
        kept = token_mask(row.response, places, spans)
        starts = sentence_starts(row.response, places)
        weights[len(prompt) : n - len(self.end)] = kept * np.where(starts, self.sentence_weight, 1)
        if ANSWER in trained:
            weights[n - len(self.end) :] = 1
            weights[n - len(self.end)] = self.sentence_weight
        weights[0] = 0
        return Example(np.array([*prompt, *ids, *self.end], np.int32), weights, len(prompt))

    def _tokens(self, row: Row) -> _Tokens:
        """Prompt, response and its places. Those of the last row are kept: it is often asked for in
        several ways."""
        if self._last is None or self._last[0] != row.text:
            prompt = chat.encode_prompt(self.tokenizer, [Message("user", row.question)])
            self._last = row.text, (prompt, *chat.located(self.tokenizer, row.response))
        return self._last[1]


def token_mask(text: str, places: Sequence[Span], trained: Sequence[Span]) -> NDArray[np.bool_]:
    """[tokens]: whether every character of the token, white space apart, lies in a trained span.

    A token of white space alone goes with the next one that has more: it is drawn to lead there.
    """
    said = np.array([not c.isspace() for c in text], np.bool_)
    outside = said.copy()
    for start, end in trained:
        outside[start:end] = False
    before = np.cumsum(np.stack([said, outside]), axis=1)
    before = np.concatenate([np.zeros((2, 1), before.dtype), before], axis=1)
    starts, ends = np.array(places, np.int64).reshape(-1, 2).T
    within = before[:, ends] - before[:, starts]
    out: NDArray[np.bool_] = within[1] == 0
    follows = False
    for n in range(len(places) - 1, -1, -1):
        follows = bool(out[n]) if within[0, n] else follows
        out[n] = follows
    return out


def sentence_starts(text: str, places: Sequence[Span]) -> NDArray[np.bool_]:
    """[tokens]: whether a sentence ends right before the token."""
    return np.array([bool(_SENTENCE_END.search(text, max(0, a - 8), a)) for a, _ in places])
