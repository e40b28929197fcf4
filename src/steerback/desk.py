"""The judge's desk: responses are judged on a thread of their own while the next are generated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from steerback.judge.base import Judge, Request
from steerback.judge.thirds import judge_thirds
from steerback.types import Generation, Trial, Verdict

Keep = Callable[[Sequence[Verdict]], None]
Finished = tuple[Trial, Generation]


def has_thirds(verdict: Verdict) -> bool:
    """A restart is explicit recovery; implicit recovery is asked of the other answers alone."""
    return verdict.status == "ok" and len(verdict.attempts) == 1


def _requests(finished: Sequence[Finished]) -> list[Request]:
    return [Request(t.key, t.question, g.text) for t, g in finished]


class Desk:
    """Takes batches of responses, hands finished verdicts to `keep`. Use as a context manager.

    A judge that shares the engine of the run (`shares_engine`) is asked only when the desk closes:
    it cannot work while the engine generates. A failure of the judge is raised at the next call;
    what was judged before is kept.
    """

    def __init__(self, judge: Judge, keep: Keep, *, implicit: bool) -> None:
        self.judge, self.keep, self.implicit = judge, keep, implicit
        self.waits = bool(getattr(judge, "shares_engine", False))
        self._waiting: list[Request] = []
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="judge")
        self._running: list[Future[None]] = []

    def submit(self, finished: Sequence[Finished]) -> None:
        """Judge these responses, and their thirds where that is wanted."""
        requests = _requests(finished)
        if self.waits:
            self._waiting += requests
        elif requests:
            self._start(self._work, requests)

    def submit_thirds(self, finished: Sequence[Finished]) -> None:
        """Judge only the thirds: the responses were judged before, without a restart."""
        if finished:
            self._start(self._thirds, _requests(finished))

    def _start(
        self, work: Callable[[Sequence[Request]], None], requests: Sequence[Request]
    ) -> None:
        self._running.append(self._pool.submit(work, requests))
        self._collect(wait=False)

    def _work(self, requests: Sequence[Request]) -> None:
        verdicts = self.judge.judge(requests)
        self.keep(verdicts)
        if self.implicit:
            single = {v.trial_key for v in verdicts if has_thirds(v)}
            self._thirds([r for r in requests if r.trial_key in single])

    def _thirds(self, requests: Sequence[Request]) -> None:
        self.keep(judge_thirds(self.judge, requests))

    def _collect(self, wait: bool) -> None:
        done = [f for f in self._running if wait or f.done()]
        self._running = [f for f in self._running if f not in done]
        for future in done:
            future.result()

    def __enter__(self) -> Desk:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._collect(wait=True)
                if self._waiting:
                    self._work(self._waiting)
        finally:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)
