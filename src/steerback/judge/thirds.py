"""Scores of the first and the last third of an answer: what implicit recovery is measured by."""

from __future__ import annotations

from collections.abc import Sequence

from steerback.judge.base import Judge, Request
from steerback.types import Attempt, Verdict

FEWEST_WORDS = 12
"""An answer shorter than this has no thirds to speak of."""


def name(judge: Judge) -> str:
    """Under which the thirds of a judge are stored."""
    return f"{judge.name}/thirds"


def bounds(text: str) -> tuple[int, int] | None:
    """Where the first third ends and the last begins, at spaces; None if the text is too short."""
    starts = [
        i for i, c in enumerate(text) if not c.isspace() and (i == 0 or text[i - 1].isspace())
    ]
    if len(starts) < FEWEST_WORDS:
        return None
    third = len(starts) // 3
    return starts[third], starts[-third]


def judge_thirds(judge: Judge, requests: Sequence[Request]) -> list[Verdict]:
    """One verdict per request, whose two attempts are the first and the last third.

    An answer too short for thirds is `unscored`; so is one of which a third could not be scored.
    """
    cuts = [bounds(r.response) for r in requests]
    pieces = [
        Request(r.trial_key, r.question, piece)
        for r, cut in zip(requests, cuts, strict=True)
        if cut is not None
        for piece in (r.response[: cut[0]], r.response[cut[1] :])
    ]
    scores = iter([v.attempts[0].score if v.status == "ok" else None for v in judge.judge(pieces)])
    return [
        _verdict(judge, r, cut, None if cut is None else (next(scores), next(scores)))
        for r, cut in zip(requests, cuts, strict=True)
    ]


def _verdict(
    judge: Judge,
    request: Request,
    cut: tuple[int, int] | None,
    scores: tuple[float | None, float | None] | None,
) -> Verdict:
    if cut is None or scores is None or None in scores:
        why = "too short for thirds" if cut is None else "a third has no score"
        return Verdict(request.trial_key, name(judge), (), "unscored", why)
    ends = ((0, cut[0]), (cut[1], len(request.response)))
    attempts = tuple(Attempt(a, b, s) for (a, b), s in zip(ends, scores, strict=True))
    return Verdict(request.trial_key, name(judge), attempts, "ok")
