"""What of a response is the model's own running prose.

Quotations, code, comments, block quotes and letters are somebody else's words or nobody's: they are
blanked. Emphasis marks are taken out, so that **wait** reads as a word; offsets are kept.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate

BLANK = "\x01"

MARKERS = (
    r"\s*(?:(?:[-*+•>]|#{1,6}|\(?\d{1,3}[.)]|[a-z][.)]|\[[ x]\])[ \t]+)*"
    r"(?:[\U0001F000-\U0001FAFF\u2600-\u27BF\uFE0F]+\s*)?[.…\s]*"
)
"""Layout before the words of a sentence: bullets, numbers, hashes, boxes, emoji."""
FIRST = re.compile(MARKERS)

_FULL_WIDTH = str.maketrans("，；：！？。", ",;:!?\n")
"""Chinese punctuation; its full stop takes no space after it, so it ends a line."""

_FENCE = re.compile(r"(?ms)^[ \t>]*(?P<mark>```|~~~).*?(?:^[ \t>]*(?P=mark)[ \t]*$|\Z)")
_HTML = re.compile(
    r"(?s)<!--.{0,1000}?-->|<(?:pre|code|blockquote|q)>.{0,1000}?</|<[a-z][^<>\n]{20,300}>"
)
_INLINE = re.compile(r"(?<!`)(`{1,2})(?!`)[^`\n]{1,400}\1(?!`)")
_COMMENT = re.compile(r"(?m)^[ \t]*(?://|/\*|\*/|;;|%%|--(?=\s)).*$|(?<=[;)}\w])[ \t]+//[ \t].*$")
_BLOCK_COMMENT = re.compile(r"(?s)/\*.{0,2000}?\*/")
# A commit in a log: its hash, then its title.
_COMMIT = re.compile(r"(?m)^[ \t*|]*(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{6,40} [^\n]*$")
_TABLE = re.compile(r"(?m)^[ \t]*\|.*$")
_TRAILING = re.compile(r"(?m)  #[ ].*$")
# A line with one # is a heading after a blank line, a comment right below a line of code.
_HASH = re.compile(r"(?m)(?<=[^\n]\n)[ \t]*#(?!#)[^\n]*$")
_QUOTED_LINE = re.compile(r"(?m)^[ \t]*>.*$")
_QUOTES = re.compile(
    r"""["“„«‘'](?:"""
    r"""(?<=")(?<![\w"]")(?=[^\s"])(?:[^"\n]|\n(?!\s*\n)){1,900}(?<=[^\s"])"(?!\w)"""
    r"|(?<=“)(?:[^“”\n]|\n(?!\s*\n)){1,900}”"
    r"|(?<=„)[^„“”\n]{1,900}[“”]"
    r"|(?<=«)[^«»\n]{1,900}»"
    r"|(?<=‘)(?:[^‘’\n]|’(?=\w)){1,900}’(?!\w)"
    r"|(?<=')(?<![\w']')(?=\w)(?:[^'\n]|'(?=\w)){1,400}(?<=[^\s'])'(?!\w))"
)
_LETTER = re.compile(
    r"(?ms)^[ \t*_]*(?:subject[*_]*:|dear\b|(?:hi|hello|hey)\b[^\n.!?]{0,40},[ \t]*$)"
    r"(?:(?!^[ \t*_]*dear\b).){0,2000}?"
    r"^[ \t*_]*(?:(?:kind|best|warm|warmest|many|kindest)?[ ]?regards|(?:yours )?sincerely|"
    r"sincerely yours|best(?: wishes)?,|(?:many )?thanks,|thank you,|cheers,|love,|respectfully)"
)
# A list of phrases with what each means: *Let me try again*: the network failed.
_TERM = re.compile(r"(?m)^[ \t]*(?:[-*+•]|\d{1,2}[.)])[ \t]+(\*{1,2}|_)[^*_\n]{1,80}\1[ \t]*[:—–]")
_VERSE = re.compile(r"(?m)(?:^\*[^*\n]+\*[ ]*(?:\n|\Z)){2,}")
_SIGNED = re.compile(r"regards|sincerely|best,|thanks,|you,|cheers,|love,|respectfully|wishes,")
_EMPHASIS = re.compile(r"[*_~](?:(?<=\*)\*{0,2}|(?<=_)_{0,2}|(?<=~)~)")


@dataclass(frozen=True)
class Prose:
    """`text` in lower case without marks, and where each run of it stood."""

    text: str
    cased: str
    """The same characters in upper and lower case; blanks are not blank here."""
    starts: tuple[int, ...]
    """Offsets in `text` at which a run begins ..."""
    origins: tuple[int, ...]
    """... and the same places in the response."""

    def origin(self, at: int) -> int:
        """Offset in the response of the character at `at`, or of the emphasis mark before it."""
        run = max(0, bisect_left(self.starts, at) - 1)
        return self.origins[run] + at - self.starts[run]


def _lower(text: str) -> str:
    low = text.lower()
    if len(low) == len(text):
        return low
    return "".join(c.lower() if len(c.lower()) == 1 else c for c in text)


def _blank(m: re.Match[str]) -> str:
    """Line breaks stay, and a full stop at the end, so that sentences start where they did."""
    blank = re.sub(r"[^\n]", BLANK, m.group())
    return blank[:-1] + "." if m.group()[-2:-1] in (".", "!", "?", "…") else blank


def _masked(low: str) -> str:
    if "```" in low or "~~~" in low:
        low = _FENCE.sub(_blank, low)
    if "<" in low:
        low = _HTML.sub(_blank, low)
    if any(mark in low for mark in ("//", "/*", ";;", "--", "%%")):
        low = _COMMENT.sub(_blank, _BLOCK_COMMENT.sub(_blank, low))
    if "git" in low or "commit" in low:
        low = _COMMIT.sub(_blank, low)
    if "|" in low:
        low = _TABLE.sub(_blank, low)
    if "  # " in low:
        low = _TRAILING.sub(_blank, low)
    if "#" in low:
        low = _HASH.sub(_blank, low)
    if ">" in low:
        low = _QUOTED_LINE.sub(_blank, low)
    if _SIGNED.search(low):
        low = _LETTER.sub(_blank, low)
    if "*" in low or "_" in low:
        low = _TERM.sub(_blank, low)
    if "*\n*" in low:
        low = _VERSE.sub(_blank, low)
    if "`" in low:
        low = _INLINE.sub(_blank, low)
    if any(mark in low for mark in "\"“„«‘'"):
        low = _QUOTES.sub(_blank, low)
    return low


def _is_mark(low: str, start: int, end: int) -> bool:
    """Whether it is emphasis: no bullet, no operator, no part of a name_with_underscores."""
    before, after = low[start - 1 : start], low[end : end + 1]
    if low[start] == "_":
        return not (before.isalnum() and after.isalnum())
    return not ((not before or before.isspace()) and (not after or after.isspace()))


def prose(text: str) -> Prose:
    """The view of `text` that restart phrases are looked for in."""
    low = _masked(_lower(text))
    low = low.replace("’", "'").replace("‘", "'").replace("\u00a0", " ")
    if "，" in low or "。" in low:
        low = low.translate(_FULL_WIDTH)
    if "*" not in low and "_" not in low and "~" not in low:
        return Prose(low, text, (0,), (0,))
    runs: list[tuple[int, int]] = []
    last = 0
    for m in _EMPHASIS.finditer(low):
        if _is_mark(low, m.start(), m.end()):
            if m.start() > last:
                runs.append((last, m.start()))
            last = m.end()
    runs.append((last, len(low)))
    lengths = accumulate((end - start for start, end in runs[:-1]), initial=0)
    return Prose(
        "".join(low[a:b] for a, b in runs),
        "".join(text[a:b] for a, b in runs),
        tuple(lengths),
        tuple(start for start, _ in runs),
    )
