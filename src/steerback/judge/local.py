"""Judges that run in this process: the loaded model itself, or another one, through our engine.

All requests of a call go to the engine together, so that they share its batches. The engine must not
be generating anything else meanwhile: for `self`, judge when its generator is exhausted.
"""

from __future__ import annotations

from collections.abc import Sequence

from steerback.engine.base import Engine
from steerback.judge.base import Request
from steerback.judge.identity import judge_name
from steerback.judge.limits import Streak
from steerback.judge.parse import BadAnswer
from steerback.judge.prompt import Prompt
from steerback.judge.verify import Mode, check_mode, failure, verdict_of
from steerback.types import Generation, Message, Sampling, Trial, Verdict

ANSWER_TOKENS = 768
PATIENCE = 50
"""Answers in a row outside the format after which the model is held to be unable to judge."""


class EngineJudge:
    """Asks a chat model through an `Engine`: unsteered, greedy, batched.

    `label` stands for the model in the judge's name ("self:MODEL", "hf:MODEL"); patience None never
    gives up.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        label: str | None = None,
        prompt: Prompt | None = None,
        mode: Mode = "verify",
        max_tokens: int = ANSWER_TOKENS,
        temperature: float = 0.0,
        patience: int | None = PATIENCE,
    ) -> None:
        check_mode(mode)
        self.engine, self.mode = engine, mode
        self.prompt = prompt or Prompt.load()
        self.sampling = Sampling(
            temperature=temperature, repetition_penalty=1.0, max_new_tokens=max_tokens
        )
        self._name = judge_name(
            label or f"self:{engine.name}",
            mode,
            self.prompt,
            temperature=temperature,
            max_tokens=max_tokens,
        )
        self._streak = None if patience is None else Streak(patience, *_UNFIT)

    @property
    def name(self) -> str:
        return self._name

    def judge(self, requests: Sequence[Request]) -> list[Verdict]:
        """One verdict per request, in order. Raises UserError when the model cannot judge at all,
        or a request does not fit its context."""
        trials = {r: self._trial(r) for r in requests if r.response.strip()}
        unique = {t.key: t for t in trials.values()}
        answers = {g.trial_key: g for g in self.engine.generate(unique.values())}
        return [
            self._verdict(r, answers[trials[r].key])
            if r in trials
            else failure(r, self.name, "unscored", "the response is empty", mode=self.mode)
            for r in requests
        ]

    def _trial(self, request: Request) -> Trial:
        return Trial(
            protocol="judge",
            arm=self.mode,
            model=self.engine.name,
            question=request.question,
            messages=(Message("user", self.prompt.fill(request)),),
            sampling=self.sampling,
            seed=0,
        )

    def _verdict(self, request: Request, answer: Generation) -> Verdict:
        try:
            verdict = verdict_of(request, self.name, answer.text, self.mode)
        except BadAnswer as bad:
            why = f"{bad} (cut off at the token limit)" if _cut(answer) else str(bad)
            if self._streak:
                self._streak.bad(self.name, why)
            return failure(request, self.name, "error", why, answer.text, self.mode)
        if self._streak:
            self._streak.good()
        return verdict


_UNFIT = ("answers were not in the format", "use a stronger judge model or another --judge-prompt")


def _cut(answer: Generation) -> bool:
    return answer.finish_reason == "length"
