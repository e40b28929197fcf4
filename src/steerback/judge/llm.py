"""The judge behind an inspect-ai model name, with a dry run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steerback.judge.base import Request
from steerback.judge.cache import AnswerCache
from steerback.judge.limits import Backoff
from steerback.judge.model import ModelJudge
from steerback.judge.network import NetworkAsker
from steerback.judge.prompt import Prompt, estimate_tokens
from steerback.judge.provider import Address, check
from steerback.judge.verify import Mode


@dataclass(frozen=True)
class Estimate:
    """What judging would take, before anything is asked."""

    responses: int
    cached: int
    """Those that need no call: cached, or empty."""
    calls: int
    prompt_tokens: int
    answer_tokens: int
    """At most."""

    def __str__(self) -> str:
        return (
            f"{self.responses:,} responses: {self.cached:,} cached, {self.calls:,} calls, about "
            f"{self.prompt_tokens:,} prompt tokens and at most {self.answer_tokens:,} answer tokens"
        )


class LlmJudge(ModelJudge):
    """Asks a provider's model. `model` is an inspect-ai name, or an `Address` with more settings;
    the rest is as for `NetworkAsker`."""

    def __init__(
        self,
        model: str | Address,
        *,
        prompt: Prompt | None = None,
        mode: Mode = "verify",
        cache: AnswerCache | None = None,
        cap: int | None = None,
        backoff: Backoff | None = None,
        reasks: int = 1,
        down: int = 10,
        unfit: int = 50,
    ) -> None:
        self.network = NetworkAsker(
            Address(model) if isinstance(model, str) else model,
            cache=cache,
            cap=cap,
            backoff=backoff,
            reasks=reasks,
            down=down,
            unfit=unfit,
        )
        super().__init__(self.network, prompt=prompt, mode=mode)

    def check(self) -> None:
        """Raises UserError if the model cannot be opened: no such provider, no SDK, no key. Nothing
        is asked."""
        check(self.network.address)

    def estimate(self, requests: Sequence[Request]) -> Estimate:
        """A dry run: nothing is asked. Tries after failures are not counted."""
        questions = self.questions(requests)
        _, open_ = self.network.cached(questions)
        return Estimate(
            responses=len(requests),
            cached=len(requests) - sum(q.prompt in open_ for q in questions),
            calls=len(open_),
            prompt_tokens=sum(map(estimate_tokens, open_)),
            answer_tokens=len(open_) * self.network.address.max_tokens,
        )
