"""Where a text that a judge quotes stands in the response."""

from __future__ import annotations

import re

_QUOTES = {"‘": "'", "’": "'", "‚": "'", "‛": "'", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"'}
_ELLIPSIS = re.compile(r"\s*(?:\[?\.{3,}\]?|\[?…\]?)\s*")
SHORTEST = 12
"""Characters that a piece beside an ellipsis needs to be looked for."""


class Text:
    """A response that quotations are looked up in: exactly, then with blanks and quotes levelled."""

    def __init__(self, response: str) -> None:
        self.response = response
        self._levelled, self._origins = _level(response)

    def find(self, quoted: str, start: int = 0) -> tuple[int, int] | None:
        """Character range [start, end) of the first place at or after `start`; None if there is none.

        A quotation that leaves words out with an ellipsis is found if its pieces stand in this order.
        """
        whole = self._find_piece(quoted.strip(), start)
        if whole:
            return whole
        pieces = [p for p in _ELLIPSIS.split(quoted.strip()) if p]
        if not pieces or pieces == [quoted.strip()] or any(len(p) < SHORTEST for p in pieces):
            return None
        return self._find_pieces(pieces, start)

    def _find_pieces(self, pieces: list[str], start: int) -> tuple[int, int] | None:
        first, at = None, start
        for piece in pieces:
            place = self._find_piece(piece, at)
            if place is None:
                return None
            first = place[0] if first is None else first
            at = place[1]
        return None if first is None else (first, at)

    def _find_piece(self, piece: str, start: int) -> tuple[int, int] | None:
        at = self.response.find(piece, start)
        if at >= 0:
            return at, at + len(piece)
        levelled, _ = _level(piece)
        at = self._levelled.find(levelled)
        while at >= 0 and self._origins[at] < start:
            at = self._levelled.find(levelled, at + 1)
        if at < 0 or not levelled:
            return None
        return self._origins[at], self._origins[at + len(levelled) - 1] + 1


def _level(text: str) -> tuple[str, list[int]]:
    """The text with straight quotes and single spaces, and where each of its characters stood."""
    out: list[str] = []
    origins: list[int] = []
    for i, c in enumerate(text):
        if not c.isspace():
            out.append(_QUOTES.get(c, c))
        elif out and out[-1] != " ":
            out.append(" ")
        else:
            continue
        origins.append(i)
    return "".join(out), origins
