"""The judge that asks a language model over a network, or a local server, and never loses count.

A call that fails is tried again with growing waits; an answer outside the format is asked for again;
what fails for good is a verdict with status "error", never a score. Good answers are cached before
anything else is done with them. A cap or a run of failures stops everything with one `UserError`;
calls in flight are waited for, so that answers paid for are kept.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from steerback.errors import UserError
from steerback.judge.base import Request
from steerback.judge.cache import AnswerCache
from steerback.judge.identity import judge_name
from steerback.judge.limits import Backoff, Cap, Streak
from steerback.judge.parse import BadAnswer
from steerback.judge.prompt import Prompt, estimate_tokens
from steerback.judge.provider import Address, CallFailed, Provider
from steerback.judge.verify import Mode, check_mode, failure, verdict_of
from steerback.types import Verdict, stable_hash

_LOG = logging.getLogger("steerback.judge")
_DOWN = ("calls failed", "check the key, the model's name and the provider's limits")
_UNFIT = ("answers were not in the format", "use a stronger judge model or another --judge-prompt")


@dataclass(frozen=True)
class Estimate:
    """What judging would take, before anything is asked."""

    responses: int
    cached: int
    calls: int
    prompt_tokens: int
    answer_tokens: int
    """At most."""

    def __str__(self) -> str:
        return (
            f"{self.responses:,} responses: {self.cached:,} cached, {self.calls:,} calls, about "
            f"{self.prompt_tokens:,} prompt tokens and at most {self.answer_tokens:,} answer tokens"
        )


class LlmJudge:
    """Asks `address.model` about each response, `address.connections` at a time.

    reasks: how often an answer outside the format is asked for again. cap: most calls of this object,
    tries and reasks included. down, unfit: failures in a row (calls without an answer; answers
    outside the format) that stop the run.
    """

    def __init__(
        self,
        address: Address,
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
        check_mode(mode)
        self.address, self.mode, self.reasks = address, mode, reasks
        self.prompt = prompt or Prompt.load()
        self.cache = AnswerCache() if cache is None else cache
        self.cap = Cap(cap)
        self.backoff = backoff or Backoff()
        self._down, self._unfit = Streak(down, *_DOWN), Streak(unfit, *_UNFIT)
        self._asked = [address.model, address.base_url, address.temperature, address.max_tokens]
        self._name = judge_name(
            address.model,
            mode,
            self.prompt,
            base_url=address.base_url,
            temperature=address.temperature,
            max_tokens=address.max_tokens,
        )

    @property
    def name(self) -> str:
        return self._name

    def judge(self, requests: Sequence[Request]) -> list[Verdict]:
        """One verdict per request, in order. Raises UserError: no inspect-ai, no key, no such model,
        the cap reached, too many failures in a row."""
        known = {r: v for r in requests if (v := self._known(r)) is not None}
        open_ = {self.prompt.fill(r): r for r in requests if r not in known}
        asked = _run(self._ask_all(open_)) if open_ else {}
        return [
            known[r] if r in known else replace(asked[self.prompt.fill(r)], trial_key=r.trial_key)
            for r in requests
        ]

    def estimate(self, requests: Sequence[Request]) -> Estimate:
        """A dry run: nothing is asked."""
        known = [r for r in requests if self._known(r) is not None]
        prompts = {self.prompt.fill(r) for r in set(requests) - set(known)}
        return Estimate(
            responses=len(requests),
            cached=len(known),
            calls=len(prompts),
            prompt_tokens=sum(map(estimate_tokens, prompts)),
            answer_tokens=len(prompts) * self.address.max_tokens,
        )

    def _known(self, request: Request) -> Verdict | None:
        """The verdict that needs no call: of an empty response, or from the cache."""
        if not request.response.strip():
            why = "the response is empty"
            return failure(request, self.name, "unscored", why, mode=self.mode)
        answer = self.cache.get(self._key(self.prompt.fill(request)))
        if answer is None:
            return None
        try:
            return verdict_of(request, self.name, answer, self.mode)
        except BadAnswer:
            return None

    def _key(self, prompt: str) -> str:
        return stable_hash(
            [*self._asked, stable_hash(prompt.encode("utf-8", "surrogatepass").hex())]
        )

    async def _ask_all(self, open_: dict[str, Request]) -> dict[str, Verdict]:
        async with Provider(self.address) as provider:
            session = _Session(
                provider, self.cap, self.backoff, self.address.connections, self.name
            )
            work = (self._ask(session, request, p) for p, request in open_.items())
            results = await asyncio.gather(*work, return_exceptions=True)
        _raise_bugs(results)
        if session.reason:
            raise session.reason
        return dict(zip(open_, (r for r in results if isinstance(r, Verdict)), strict=True))

    async def _ask(self, session: _Session, request: Request, prompt: str) -> Verdict:
        try:
            return await self._verdict(session, request, prompt)
        except UserError as error:
            session.stop(error)
            raise

    async def _verdict(self, session: _Session, request: Request, prompt: str) -> Verdict:
        answer = why = ""
        for _ in range(1 + self.reasks):
            try:
                answer = await session.call(prompt)
                verdict = verdict_of(request, self.name, answer, self.mode)
            except CallFailed as failed:
                self._down.bad(self.name, str(failed))
                return failure(request, self.name, "error", str(failed), mode=self.mode)
            except BadAnswer as bad:
                self._down.good()
                why = str(bad)
                continue
            self.cache.put(self._key(prompt), self.address.model, answer)
            self._down.good()
            self._unfit.good()
            return verdict
        self._unfit.bad(self.name, why)
        return failure(request, self.name, "error", why, answer, self.mode)


class _Session:
    """Calls of one batch: gated, counted, tried again, and stopped together."""

    def __init__(
        self, provider: Provider, cap: Cap, backoff: Backoff, connections: int, judge: str
    ) -> None:
        self.provider, self.cap, self.backoff, self.judge = provider, cap, backoff, judge
        self._gate = asyncio.Semaphore(connections)
        self._stopped = asyncio.Event()
        self.reason: UserError | None = None

    def stop(self, reason: UserError) -> None:
        """No call starts from now on."""
        self.reason = self.reason or reason
        self._stopped.set()

    async def call(self, prompt: str) -> str:
        """The answer. Raises CallFailed when the last try failed, UserError when stopped."""
        failures = 0
        while True:
            async with self._gate:
                if self.reason:
                    raise self.reason
                self.cap.take(self.judge)
                try:
                    return await self.provider.ask(prompt)
                except CallFailed as error:
                    failed = error
            failures += 1
            _LOG.info("%s: try %d of %d: %s", self.judge, failures, self.backoff.tries, failed)
            if not failed.again or failures >= self.backoff.tries:
                raise failed
            await self._rest(self.backoff.wait(failures, failed.hint))

    async def _rest(self, seconds: float) -> None:
        """Wait, but no longer than until the batch is stopped."""
        try:
            await asyncio.wait_for(self._stopped.wait(), seconds)
        except asyncio.TimeoutError:
            return


def _raise_bugs(results: Iterable[Any]) -> None:
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, UserError):
            raise result


def _run(work: Coroutine[Any, Any, dict[str, Verdict]]) -> dict[str, Verdict]:
    """Runs to the end, in a notebook's cell (where a loop is running already) too."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
