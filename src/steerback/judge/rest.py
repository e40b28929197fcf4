"""Score of what a response adds to the text that it was made to begin with."""

from __future__ import annotations

from collections.abc import Sequence

from steerback.judge.base import Judge, Request
from steerback.types import Attempt, Generation, Trial, Verdict


def name(judge: Judge) -> str:
    """Under which these scores of a judge are stored."""
    return f"{judge.name}/rest"


def judge_rest(judge: Judge, finished: Sequence[tuple[Trial, Generation]]) -> list[Verdict]:
    """One verdict per response, whose one attempt is all that follows the prefill.

    It is judged as an answer of its own; with restarts in it, its score is the mean over its attempts,
    weighted by their length. `unscored`: nothing follows, or some attempt has no score.
    """
    starts = [len(t.prefill) for t, _ in finished]
    asked = [
        (trial, generation, start)
        for (trial, generation), start in zip(finished, starts, strict=True)
        if generation.text[start:].strip()
    ]
    requests = [Request(t.key, t.question, g.text[start:]) for t, g, start in asked]
    judged = {v.trial_key: v for v in judge.judge(requests)}
    return [
        _verdict(name(judge), g, start, judged.get(t.key))
        for (t, g), start in zip(finished, starts, strict=True)
    ]


def _verdict(judge: str, generation: Generation, start: int, verdict: Verdict | None) -> Verdict:
    key = generation.trial_key
    if verdict is None:
        return Verdict(key, judge, (), "unscored", "nothing follows the prefill")
    if verdict.status != "ok" or not verdict.attempts:
        return Verdict(key, judge, (), verdict.status, verdict.raw)
    scored = [(a.end - a.start, a.score) for a in verdict.attempts]
    total = sum(n for n, _ in scored)
    scores = [n * s for n, s in scored if s is not None]
    if len(scores) < len(scored) or not total:
        return Verdict(key, judge, (), "unscored", "an attempt has no score")
    return Verdict(
        key, judge, (Attempt(start, len(generation.text), sum(scores) / total),), "ok", verdict.raw
    )
