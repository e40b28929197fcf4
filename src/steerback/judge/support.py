"""Whether the response itself bears out a boundary that a judge claims."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from steerback.judge.prose import BLANK, prose
from steerback.judge.segment import restarts

NEAR = 60
"""Characters between a judge's boundary and a restart phrase that still mean the same restart: judges
put the phrase at the end of the old attempt as often as at the start of the new one."""
_PIECE, _BEFORE = 200, "The water has to boil for a while. "
"""Characters read at the place itself, and an attempt for them to reject."""


@dataclass(frozen=True)
class Boundary:
    """An attempt starts at `start`; it may be recognised by its phrase, response[start:end]."""

    start: int
    end: int

    def distance(self, place: int) -> int:
        """Characters between the place and the phrase; 0 inside it."""
        return max(self.start - place, place - self.end, 0)


class Evidence:
    """The restarts that can be read off a response, each of which bears out one boundary."""

    def __init__(self, response: str) -> None:
        self.response = response
        self.found = [Boundary(r.start, r.end) for r in restarts(response)]
        self.used: set[Boundary] = set()

    def at(self, place: int, after: int = 0) -> int | None:
        """Where the attempt starts that a judge starts at `place`: beyond `after`, the start of the
        attempt before it. None if nothing supports it."""
        free = [b for b in self.found if b not in self.used and b.start > after]
        near = [b for b in free if b.distance(place) <= NEAR]
        if near:
            best = min(near, key=lambda b: b.distance(place))
            self.used.add(best)
            return best.start
        claimed = any(b.start <= place and b.distance(place) <= NEAR for b in self.used)
        return place if place > after and not claimed and self._phrase(place) else None

    @property
    def missed(self) -> list[int]:
        """Starts of the restarts that bore out no boundary."""
        return [b.start for b in self.found if b not in self.used]

    def _phrase(self, place: int) -> bool:
        """Whether the model's own words at this very place are explicit, all context aside."""
        if not self._own_words(place) or not self.response[:place].strip():
            return False
        piece = self.response[place : place + _PIECE]
        alone = restarts(_BEFORE + piece)
        return bool(alone) and alone[0].start == len(_BEFORE)

    def _own_words(self, place: int) -> bool:
        view = prose(self.response)
        run = bisect_right(view.origins, place) - 1
        at = view.starts[run] + place - view.origins[run]
        return at < len(view.text) and view.text[at] != BLANK
