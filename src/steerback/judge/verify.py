"""Claims to a verdict: every boundary and score is traced to characters of the response.

`verify`: a claimed boundary counts where the response bears it out (`support`), and moves to the
phrase that does. `trust`: every boundary counts whose text stands in the response. Attempts tile the
response. Where a boundary falls away, the attempt that is left has the mean of the scores of its
parts, weighted by their length: nothing the judge did not say. An attempt for which no claim is left
has no score, and a verdict whose first attempt has none is `unscored`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from steerback.errors import UserError, nearest
from steerback.judge.base import Request
from steerback.judge.locate import Text
from steerback.judge.parse import BadAnswer, Claim, parse_answer
from steerback.judge.support import NEAR, Evidence
from steerback.types import Attempt, Status, Verdict

Mode = Literal["verify", "trust"]
MODES: tuple[str, ...] = get_args(Mode)
_QUOTED = 200


@dataclass(frozen=True)
class Rejected:
    """A claim whose boundary does not count."""

    at: int | None
    """Offset at which its text stands in the response; None if it does not."""
    text: str
    score: float
    why: str


@dataclass(frozen=True)
class Notes:
    """What `Verdict.raw` of a judge that needs a model holds, as JSON."""

    answer: str
    mode: str = "verify"
    why: str = ""
    """Why there is no score; empty for status "ok"."""
    rejected: list[Rejected] = field(default_factory=list)
    missed: list[int] = field(default_factory=list)
    """Restarts found by `segment` at which the judge starts no attempt (offsets)."""

    def dump(self) -> str:
        return json.dumps(asdict(self))


def read_notes(raw: str) -> Notes | None:
    """The notes in a verdict's `raw`; None where another kind of judge wrote it."""
    try:
        table: Any = json.loads(raw)
        return Notes(**{**table, "rejected": [Rejected(**r) for r in table["rejected"]]})
    except (ValueError, TypeError, KeyError):
        return None


def check_mode(mode: str) -> None:
    if mode not in MODES:
        raise UserError(f"judge mode {mode!r} does not exist; {nearest(mode, MODES)}")


def verdict_of(request: Request, judge: str, answer: str, mode: Mode = "verify") -> Verdict:
    """The verdict that an answer amounts to. Raises BadAnswer if it is not one."""
    claims = parse_answer(answer)
    if not claims:
        return failure(request, judge, "unscored", "the judge finds no attempt", answer, mode)
    return _Grading(request, mode).run(judge, claims, answer)


def failure(
    request: Request, judge: str, status: Status, why: str, answer: str = "", mode: Mode = "verify"
) -> Verdict:
    """A verdict without a score, and why."""
    return Verdict(request.trial_key, judge, (), status, Notes(answer, mode, why).dump())


@dataclass(frozen=True)
class _Placed:
    at: int
    number: int
    claim: Claim


class _Grading:
    """One answer to one response."""

    def __init__(self, request: Request, mode: Mode) -> None:
        self.request, self.mode = request, mode
        self.response = request.response
        self.evidence = Evidence(self.response)
        self.rejected: list[Rejected] = []

    def run(self, judge: str, claims: Sequence[Claim], answer: str) -> Verdict:
        placed = self._place(claims)
        if not placed:
            raise BadAnswer("no attempt's text stands in the response")
        starts, parts = self._boundaries(placed)
        scores = [_mean(part) for part in parts]
        ends = [*starts[1:], len(self.response)]
        attempts = tuple(map(Attempt, starts, ends, scores))
        why = "" if scores[0] is not None else "the first attempt has no score"
        notes = Notes(answer, self.mode, why, self.rejected, self._missed(starts))
        status: Status = "unscored" if why else "ok"
        return Verdict(self.request.trial_key, judge, attempts, status, notes.dump())

    def _place(self, claims: Sequence[Claim]) -> list[_Placed]:
        """The claims whose texts stand in the response, in its order."""
        text, placed = Text(self.response), list[_Placed]()
        start = end = 0
        for number, claim in enumerate(claims):
            span = text.find(claim.text, end) or text.find(claim.text, start)
            if span is None:
                elsewhere = text.find(claim.text)
                why = "out of order" if elsewhere else "not in the response"
                self._reject(claim, elsewhere[0] if elsewhere else None, why)
                continue
            start, end = span[0] + 1, span[1]
            placed.append(_Placed(span[0], number, claim))
        return placed

    def _boundaries(
        self, placed: Sequence[_Placed]
    ) -> tuple[list[int], list[list[tuple[float, int]]]]:
        """Where attempts start, and for each the (score, length) of the claims it is made of."""
        starts, parts = [0], [list[tuple[float, int]]()]
        ends = [*(p.at for p in placed[1:]), len(self.response)]
        for p, end in zip(placed, ends, strict=True):
            start = self._boundary(p, starts[-1])
            if start is not None:
                starts.append(start)
                parts.append([])
            elif p.number and p.at > 0:
                self._reject(p.claim, p.at, "no restart there")
            parts[-1].append((p.claim.score, end - p.at))
        return starts, parts

    def _boundary(self, p: _Placed, after: int) -> int | None:
        """Where the claim's attempt starts, if that may be a boundary beyond the last one."""
        if not self.response[: p.at].strip():
            return None
        if self.mode == "verify":
            return self.evidence.at(p.at, after)
        return p.at if p.number and p.at > after else None

    def _missed(self, starts: Sequence[int]) -> list[int]:
        if self.mode == "verify":
            return self.evidence.missed
        found = self.evidence.found
        return [b.start for b in found if not any(b.distance(s) <= NEAR for s in starts[1:])]

    def _reject(self, claim: Claim, at: int | None, why: str) -> None:
        self.rejected.append(Rejected(at, claim.text[:_QUOTED], claim.score, why))


def _mean(parts: Sequence[tuple[float, int]]) -> float | None:
    """Mean score weighted by length (characters)."""
    if not parts:
        return None
    if len({score for score, _ in parts}) == 1:
        return parts[0][0]
    return sum(s * n for s, n in parts) / sum(n for _, n in parts)
