"""Which characters a match of a regular expression can start with.

Most places of a text can start none of a hundred phrases. Knowing the first letters of each phrase
saves trying it, and costs nothing in exactness: the set returned is never too small.
"""

from __future__ import annotations

import re
from functools import reduce

Prefix = tuple[str, bool]
"""Letters, and whether what follows them is known to come next."""
NOTHING: frozenset[Prefix] = frozenset({("", True)})
ANYTHING: frozenset[Prefix] = frozenset({("", False)})

_ATOM = re.compile(
    r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?[=!]|\(\?<[=!]|\(\?:|\(\?P<\w+>|.", re.DOTALL
)
_REPEAT = re.compile(r"(?P<zero>[?*]|\{0?,\d*\})\??|(?:\+|\{\d+(?:,\d*)?\})\??")


def prefixes(regex: str, length: int = 3) -> frozenset[str]:
    """First `length` characters, or fewer, of every match of `regex` (white space as a space).

    A text that `regex` matches starts with one of them. Flags inside the regex are not understood.
    """
    found, end = _either(regex, 0, length)
    if end != len(regex):
        raise ValueError(f"unbalanced parenthesis at {end}")
    return frozenset(letters for letters, _ in found)


def _either(regex: str, at: int, length: int) -> tuple[frozenset[Prefix], int]:
    """Alternatives up to the end or the closing parenthesis."""
    found: frozenset[Prefix] = frozenset()
    while True:
        one, at = _sequence(regex, at, length)
        found |= one
        if at == len(regex) or regex[at] == ")":
            return found, at
        at += 1


def _sequence(regex: str, at: int, length: int) -> tuple[frozenset[Prefix], int]:
    parts = []
    while at < len(regex) and regex[at] not in "|)":
        part, at = _piece(regex, at, length)
        parts.append(part)
    return reduce(lambda a, b: _then(a, b, length), parts, NOTHING), at


def _piece(regex: str, at: int, length: int) -> tuple[frozenset[Prefix], int]:
    """An atom and how often it may come."""
    atom = _ATOM.match(regex, at)
    assert atom is not None
    found, at = _atom(regex, atom, length)
    repeat = _REPEAT.match(regex, at)
    if not repeat:
        return found, at
    if repeat.group()[0] != "?":
        found = frozenset((letters, False) for letters, _ in found)
    return (found | NOTHING if repeat.group("zero") else found), repeat.end()


def _atom(regex: str, atom: re.Match[str], length: int) -> tuple[frozenset[Prefix], int]:
    text, at = atom.group(), atom.end()
    if text[0] == "(":
        found, end = _either(regex, at, length)
        looks = text.startswith(("(?=", "(?!", "(?<=", "(?<!"))
        return (NOTHING if looks else found), end + 1
    if text in (r"\b", r"\B", r"\A", r"\Z", "^", "$"):
        return NOTHING, at
    if text == r"\s" or text.isspace():
        return frozenset({(" ", True)}), at
    if text[0] == "[" or text == "." or (len(text) == 2 and text[1].isalnum()):
        return ANYTHING, at
    return frozenset({(text[-1], True)}), at


def _then(first: frozenset[Prefix], second: frozenset[Prefix], length: int) -> frozenset[Prefix]:
    found = set()
    for letters, open_ in first:
        for more, more_open in second if open_ else [("", False)]:
            both = letters + more
            found.add((both[:length], more_open and len(both) < length))
    return frozenset(found)
