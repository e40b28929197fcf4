"""The judge that asks a language model for attempts and scores, and verifies what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from steerback.judge.ask import Asker, Failed, Question
from steerback.judge.base import Request
from steerback.judge.identity import judge_name
from steerback.judge.prompt import Prompt
from steerback.judge.verify import Mode, check_mode, failure, verdict_of
from steerback.types import Verdict


class ModelJudge:
    """Any asker as a judge. A response without text is unscored, and nobody is asked about it."""

    def __init__(
        self, asker: Asker, *, prompt: Prompt | None = None, mode: Mode = "verify"
    ) -> None:
        check_mode(mode)
        self.prompt = prompt or Prompt.load()
        self.mode = mode
        self.asker = asker
        self._name = judge_name(asker.model, mode, self.prompt, **asker.settings)

    @property
    def name(self) -> str:
        return self._name

    def judge(self, requests: Sequence[Request]) -> list[Verdict]:
        """One verdict per request, in order. Raises UserError when judging on makes no sense."""
        asked = [r for r in requests if r.response.strip()]
        results = iter(self.asker.ask(self.questions(asked)))
        return [
            self._verdict(r, next(results)) if r.response.strip() else self._empty(r)
            for r in requests
        ]

    def questions(self, requests: Sequence[Request]) -> list[Question[Verdict]]:
        def question(r: Request) -> Question[Verdict]:
            return Question(
                self.prompt.fill(r),
                lambda said: verdict_of(r, self.name, said, self.mode),
                self.prompt.opening,
            )

        return [question(r) for r in requests if r.response.strip()]

    def _verdict(self, request: Request, result: Verdict | Failed) -> Verdict:
        if isinstance(result, Failed):
            return failure(request, self.name, "error", result.why, result.answer, self.mode)
        return replace(result, trial_key=request.trial_key)

    def _empty(self, request: Request) -> Verdict:
        return failure(request, self.name, "unscored", "the response is empty", mode=self.mode)
