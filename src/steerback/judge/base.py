"""What a judge is: responses in, verdicts out. Unscored is never zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from steerback.types import Verdict


@dataclass(frozen=True)
class Request:
    """One response to judge."""

    trial_key: str
    question: str
    response: str


PARTS = ("/thirds", "/rest")
"""Ends of the names under which a judge's scores of parts of responses are stored."""


def judges_whole(name: str) -> bool:
    """Whether the verdicts of this name are of whole responses."""
    return not name.endswith(PARTS)


class Judge(Protocol):
    """Splits responses into attempts and scores each from 0 to 100."""

    @property
    def name(self) -> str:
        """Identifies the judge and every setting that can change a verdict."""
        ...

    def judge(self, requests: Sequence[Request]) -> list[Verdict]:
        """One verdict per request, in order. A failure is a status, never a score."""
        ...
