"""Judges that run in this process: the loaded model itself, or another one, through our engine.

All questions of a call go to the engine together, so that they share its batches. The engine must not
be generating anything else meanwhile: for `self`, judge when its generator is exhausted.
"""

from __future__ import annotations

from collections.abc import Sequence

from steerback.engine.base import Engine
from steerback.judge.ask import UNFIT, Failed, Question, T
from steerback.judge.limits import Streak
from steerback.judge.model import ModelJudge
from steerback.judge.parse import BadAnswer
from steerback.judge.prompt import Prompt
from steerback.judge.verify import Mode
from steerback.types import Generation, Message, Sampling, Trial

ANSWER_TOKENS = 768
PATIENCE = 50
"""Answers in a row outside the format after which the model is held to be unable to judge."""


class EngineAsker:
    """Asks a chat model through an `Engine`: unsteered, batched.

    `label` stands for the model in the judge's name ("self:MODEL", "hf:MODEL"); patience None never
    gives up.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        label: str | None = None,
        max_tokens: int = ANSWER_TOKENS,
        temperature: float = 0.0,
        patience: int | None = PATIENCE,
    ) -> None:
        self.engine = engine
        self.model = label or f"self:{engine.name}"
        self.settings: dict[str, str | float | None] = {
            "temperature": temperature,
            "max_tokens": max_tokens,
        }
        self._sampling = Sampling(
            temperature=temperature, repetition_penalty=1.0, max_new_tokens=max_tokens
        )
        self._streak = None if patience is None else Streak(patience, *UNFIT)

    def ask(self, questions: Sequence[Question[T]]) -> list[T | Failed]:
        """See `Asker`. Raises UserError when the model cannot answer at all, or a prompt does not
        fit its context."""
        trials = {q.prompt: self._trial(q.prompt) for q in questions}
        answers: dict[str, Generation] = {}
        for opening in dict.fromkeys(q.opening for q in questions):
            asked = dict.fromkeys(q.prompt for q in questions if q.opening == opening)
            made = self.engine.generate([trials[prompt] for prompt in asked], opening=opening)
            answers.update((g.trial_key, g) for g in made)
        return [self._read(q, answers[trials[q.prompt].key]) for q in questions]

    def _trial(self, prompt: str) -> Trial:
        return Trial(
            protocol="judge",
            arm="",
            model=self.engine.name,
            question=prompt,
            messages=(Message("user", prompt),),
            sampling=self._sampling,
            seed=0,
        )

    def _read(self, question: Question[T], answer: Generation) -> T | Failed:
        try:
            result = question.read(answer.text)
        except BadAnswer as bad:
            cut = answer.finish_reason == "length"
            why = f"{bad} (cut off at the token limit)" if cut else str(bad)
            if self._streak:
                self._streak.bad(self.model, why)
            return Failed(why, answer.text)
        if self._streak:
            self._streak.good()
        return result


class EngineJudge(ModelJudge):
    """An `EngineAsker` as a judge. `shares_engine`: the engine is also the one that makes the trials,
    so that the judge has to wait until it is idle."""

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
        shares_engine: bool = True,
    ) -> None:
        self.shares_engine = shares_engine
        asker = EngineAsker(
            engine, label=label, max_tokens=max_tokens, temperature=temperature, patience=patience
        )
        super().__init__(asker, prompt=prompt, mode=mode)
