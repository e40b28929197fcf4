"""vLLM's logits processor with our own draw. Imports vLLM, so only its processes import this."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from steerback.engine.vllm.drawing import Draws, Row
from steerback.engine.vllm.plugin import request_of
from steerback.engine.vllm.steering import MOST_FOUND

BROKEN: dict[str, None] = {}
"""Keys of requests whose logits were no numbers."""


class Draw(LogitsProcessor):  # type: ignore[misc]
    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        self.draws = Draws()

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self.draws.rows, batch_update, _row)
        if batch_update:
            self.draws.changed()

    def apply(self, logits: Tensor) -> Tensor:
        for key in self.draws.force(logits):
            while len(BROKEN) >= MOST_FOUND:
                del BROKEN[next(iter(BROKEN))]
            BROKEN[key] = None
        return logits


def _row(params: Any, prompt: list[int] | None, output: list[int]) -> Row | None:
    request = request_of(params)
    return None if request is None else Row.of(request, prompt or [], output)
