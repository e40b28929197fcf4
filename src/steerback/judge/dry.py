"""The judge of rehearsals: verdicts drawn by the hash of the response. They mean nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from steerback.judge.base import Request
from steerback.types import Attempt, Verdict, stable_hash

TOP = 60.0
"""Scores are uniform from 0 to here, so that a search for a mean of 30 ends somewhere."""
RESTARTED, UNSCORED = 1 / 8, 1 / 25


@dataclass(frozen=True)
class DryJudge:
    """One response in 8 restarts in the middle, one in 25 is unscored."""

    name: str = "dry"

    def judge(self, requests: Sequence[Request]) -> list[Verdict]:
        return [self._verdict(r) for r in requests]

    def _verdict(self, request: Request) -> Verdict:
        key = int(stable_hash([request.question, request.response]), 16)
        restart, missing, *scores = np.random.default_rng(key).random(4)
        if missing < UNSCORED:
            return Verdict(request.trial_key, self.name, (), "unscored", "drawn by lot")
        length = len(request.response)
        cuts = [0, length // 2, length] if restart < RESTARTED and length > 1 else [0, length]
        attempts = tuple(
            Attempt(a, b, float(TOP * s)) for a, b, s in zip(cuts, cuts[1:], scores, strict=False)
        )
        return Verdict(request.trial_key, self.name, attempts, "ok", "drawn by lot")
