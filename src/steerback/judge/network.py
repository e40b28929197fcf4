"""Questions to a model over a network or on a local server, none of which is lost.

A call that fails is tried again with growing waits; an answer outside the format is asked for again;
what fails for good is `Failed`. Good answers are cached before anything else is done with them. A cap
or a run of failures stops everything with one `UserError`; calls in flight are waited for, so that
answers paid for are kept.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence

from steerback.errors import UserError
from steerback.judge.ask import UNFIT, Failed, Question, T
from steerback.judge.cache import AnswerCache
from steerback.judge.limits import Backoff, Cap, Streak
from steerback.judge.parse import BadAnswer
from steerback.judge.provider import Address, CallFailed, Provider, run
from steerback.types import stable_hash

_LOG = logging.getLogger("steerback.judge")
_DOWN = ("calls failed", "check the key, the model's name and the provider's limits")


class NetworkAsker:
    """Asks `address.model`, `address.connections` questions at a time.

    reasks: how often an answer outside the format is asked for again. cap: most calls of this object,
    tries and reasks included. down, unfit: failures in a row (calls without an answer; answers
    outside the format) that stop the run.
    """

    def __init__(
        self,
        address: Address,
        *,
        cache: AnswerCache | None = None,
        cap: int | None = None,
        backoff: Backoff | None = None,
        reasks: int = 1,
        down: int = 10,
        unfit: int = 50,
    ) -> None:
        self.address, self.reasks = address, reasks
        self.cache = AnswerCache() if cache is None else cache
        self.cap = Cap(cap)
        self.backoff = backoff or Backoff()
        self.model = address.model
        self.settings: dict[str, str | float | None] = {
            "base_url": address.base_url,
            "temperature": address.temperature,
            "max_tokens": address.max_tokens,
        }
        self._down, self._unfit = Streak(down, *_DOWN), Streak(unfit, *UNFIT)

    def ask(self, questions: Sequence[Question[T]]) -> list[T | Failed]:
        """See `Asker`. Raises UserError: no inspect-ai, no key, no such model, the cap reached, too
        many failures in a row."""
        results, open_ = self.cached(questions)
        if open_:
            results = {**results, **run(self._ask_all(open_))}
        return [results[q.prompt] for q in questions]

    def cached(
        self, questions: Iterable[Question[T]]
    ) -> tuple[dict[str, T | Failed], dict[str, Question[T]]]:
        """What is known without a call, and what is not, by prompt."""
        known: dict[str, T | Failed] = {}
        open_: dict[str, Question[T]] = {}
        for q in questions:
            if q.prompt in known or q.prompt in open_:
                continue
            answer = self.cache.get(self._key(q.prompt))
            try:
                if answer is None:
                    open_[q.prompt] = q
                else:
                    known[q.prompt] = q.read(answer)
            except BadAnswer:
                open_[q.prompt] = q
        return known, open_

    def _key(self, prompt: str) -> str:
        return stable_hash([self.model, self.settings, prompt])

    async def _ask_all(self, open_: Mapping[str, Question[T]]) -> dict[str, T | Failed]:
        async with Provider(self.address) as provider:
            session = _Session(provider, self.cap, self.backoff)
            work = (self._ask_one(session, q) for q in open_.values())
            results = await asyncio.gather(*work, return_exceptions=True)
        done: dict[str, T | Failed] = {}
        for prompt, result in zip(open_, results, strict=True):
            if isinstance(result, UserError):
                continue
            if isinstance(result, BaseException):
                raise result
            done[prompt] = result
        if session.reason:
            raise session.reason
        return done

    async def _ask_one(self, session: _Session, question: Question[T]) -> T | Failed:
        try:
            return await self._result(session, question)
        except UserError as error:
            session.stop(error)
            raise

    async def _result(self, session: _Session, question: Question[T]) -> T | Failed:
        answer = why = ""
        for _ in range(1 + self.reasks):
            try:
                answer = await session.call(question.prompt)
                result = question.read(answer)
            except CallFailed as failed:
                self._down.bad(self.model, str(failed))
                return Failed(str(failed))
            except BadAnswer as bad:
                self._down.good()
                why = str(bad)
                continue
            self.cache.put(self._key(question.prompt), self.model, answer)
            self._down.good()
            self._unfit.good()
            return result
        self._unfit.bad(self.model, why)
        return Failed(why, answer)


class _Session:
    """Calls of one batch: gated, counted, tried again, and stopped together."""

    def __init__(self, provider: Provider, cap: Cap, backoff: Backoff) -> None:
        self.provider, self.cap, self.backoff = provider, cap, backoff
        self.model = provider.address.model
        self.reason: UserError | None = None
        """Why no call starts any more."""
        self._gate = asyncio.Semaphore(provider.address.connections)
        self._stopped = asyncio.Event()

    def stop(self, reason: UserError) -> None:
        self.reason = self.reason or reason
        self._stopped.set()

    async def call(self, prompt: str) -> str:
        """The answer. Raises CallFailed when the last try failed, BadAnswer when a filter refused,
        UserError when stopped."""
        failures = 0
        while True:
            async with self._gate:
                if self.reason:
                    raise self.reason
                self.cap.take(self.model)
                try:
                    return await self.provider.ask(prompt)
                except CallFailed as error:
                    failed = error
            failures += 1
            _LOG.info("%s: try %d of %d: %s", self.model, failures, self.backoff.tries, failed)
            if not failed.again or failures >= self.backoff.tries:
                raise failed
            await self._rest(self.backoff.wait(failures, failed.hint))

    async def _rest(self, seconds: float) -> None:
        """Wait, but no longer than until the batch is stopped."""
        try:
            await asyncio.wait_for(self._stopped.wait(), seconds)
        except asyncio.TimeoutError:
            return
