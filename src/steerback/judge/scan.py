"""Where in a text a restart phrase may start, and what it scores there.

A phrase is looked for where a sentence or a clause starts. It may be led in by other words (wait,
sorry, hmm), which have points of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from steerback.judge.patterns import Lead, Pattern, Patterns
from steerback.judge.prose import BLANK, FIRST, MARKERS
from steerback.judge.topics import agrees

ENOUGH = 4
"""Points of a restart."""
NEAR = 300
"""Characters within which words belong together."""
MOST_LEADS = 9
"""Lead words in a row that are read: a text that only says "wait" takes no longer than another."""

_ANCHOR = re.compile(
    r"[\n.!?:…;,(\[—–> -](?:"
    r"(?P<sentence>(?:(?<=[\n>])|(?<=[.!?:…])[.!?…]*[)\]\"']*\s)" + MARKERS + ")"
    r"|(?P<dash>(?:(?<=\.)\.+|(?<=-)-+|(?<= )-{1,3}(?= )|(?<=[…—–]))[\s.…]*)"
    r"|(?P<clause>(?<=[;,(\[])\s*)"
    r"|(?P<word>(?<=[a-z0-9'] )(?=(?:no,? |oh |but |or |ok |okay |oh man )?"
    r"(?:wait|sorry that|stop\b|i need to stop|i'm sorry, i|i apologi[sz]e for|"
    r"hold on|hang on|scratch that|strike that|scrap that|oops|no sorry|"
    r"sorry, (?:that|this|i|no)|no, (?:that|this|it|wait|not|sorry)\b|ugh, (?:that|i)|"
    r"let me (?:start over|start again|try again|redo)|this is not what i)\b))"
    r"|(?P<capital>(?<=[a-z',;] )(?=(?:ok|okay|sorry|oh|no|hmm+|wait|actually|let me|let's|that|this|"
    r"why am i|what (?:am|is|was) |my (?:mistake|apologies|bad|answer)|apologies|please|ignore|never|"
    r"disregard|"
    r"scratch|strike|hold on|enough|stop|back to|where was|wrong|none of|correction|forget|excuse me|"
    r"pardon|ugh+|argh+|oops|whoops|nope|anyway|seriously|um|uh|er)\b)))"
)
_WRITER = re.compile(r"\b(?:i|i'm|i've|i'd|my|me|myself)\b")
_TAGS = ("haven't i", "didn't i", "aren't i", "don't i", "is it", "does it", "am i", "do they")
"""Question tags: "I've been going on about bees, haven't I?" asks nothing."""
_ORDER = re.compile(r"(?:stop|wait|pause|hold on)[.!](?=\s)")
"""Where a sentence with if ends in it, the reader is told to."""
_BROKEN = ("-", "—", "–", "…", "..")
"""What a sentence that is broken off ends with."""
STOP = re.compile(r"[.!?…]+(?=\s|$|[)\"'\]])|\n")


@dataclass
class Hit:
    """What was found at one anchor, or in one event (offsets are those of the prose view)."""

    start: int
    end: int
    sentence: int
    points: dict[str, int] = field(default_factory=dict)
    best: tuple[int, str] = (0, "")
    opens: bool = False
    interrupts: bool = False
    """Led by an interruption (wait, hold on)."""
    leads: tuple[Lead, ...] = ()
    """The lead words that score."""

    @property
    def total(self) -> int:
        return sum(self.points.values())

    @property
    def exclaims(self) -> bool:
        """Whether it is only lead words, which say nothing without what follows them."""
        return self.total < ENOUGH and set(self.points) <= {"lead"}

    def score(self, group: str, points: int, name: str, end: int) -> None:
        self.points[group] = max(self.points.get(group, 0), points)
        if points > self.best[0]:
            self.best = (points, name)
        self.end = max(self.end, end)

    def absorb(self, other: Hit) -> None:
        for group, points in other.points.items():
            self.score(group, points, other.best[1], other.end)
        self.sentence = other.sentence


@dataclass
class Scan:
    """One pass over the places where a phrase may start."""

    text: str
    cased: str
    """The same in upper and lower case."""
    patterns: Patterns
    sentence: int = 0
    begin: int = 0
    """Where the sentence starts ..."""
    before: int = 0
    """... and where the one before it does."""
    pending: tuple[Lead, ...] = ()
    """Leads of this sentence that nothing followed yet."""
    words: dict[str, bool] = field(default_factory=dict)
    """Of the rare patterns met so far, whether the text has a word for them."""
    rare: tuple[Pattern, ...] = field(init=False)
    """Patterns that may start with any letters, and that most texts have no word for."""

    def __post_init__(self) -> None:
        self.rare = tuple(p for p in self.patterns.rare if self._worded(p))

    def hits(self) -> Iterator[Hit]:
        first = FIRST.match(self.text)
        yield from self._at("sentence", first.end() if first else 0)
        for m in _ANCHOR.finditer(self.text, first.end() if first else 0):
            if place := self._place(m):
                yield from self._at(place, m.end())

    def _place(self, anchor: re.Match[str]) -> str:
        """sentence, dash, clause or word; a bracket opens a sentence, a wrapped line does not, and a
        capital does in a text that has lost its full stops. "": none."""
        if anchor.lastgroup == "capital":
            at = anchor.end()
            lost = self.cased[at].isupper() and not self.cased[at - 2].isupper()
            verb = self.patterns.guards["verb"].search(self.text, max(0, at - 20), at)
            return "sentence" if lost and not verb else ""
        mark, before = anchor.group(), self.text[anchor.start() - 1]
        if mark == "(" and before.isspace():
            return "sentence"
        wraps = mark[0] == "\n" and mark.count("\n") == 1 and mark.isspace()
        if (
            wraps
            and before not in ".!?:…"
            and self.cased[anchor.end() : anchor.end() + 1].islower()
        ):
            return "dash"
        return anchor.lastgroup or ""

    def _at(self, place: str, at: int) -> Iterator[Hit]:
        if place == "sentence":
            self.sentence += 1
            self.before, self.begin = self.begin, at
            self.pending = ()
        if place == "clause" and _ORDER.match(self.text, at) and self._supposes():
            return
        lead = self.patterns.leads_at(self.text, at)
        if not (lead or self.pending or self._candidates(at, led=False)):
            return
        hit, body = self._lead(at) if lead else (Hit(at, at, self.sentence), at)
        if place == "sentence":
            self.pending = tuple(lead for lead in hit.leads if lead.carries)
        elif place == "clause" and not hit.leads and self.pending:
            self._carry(hit)
        self._score(hit, place, body)
        if body > at:
            self._score(hit, place, at, body)
        veto = self.patterns.guards["veto"]
        if hit.points and not veto.match(self.text, body) and self._stands(hit, place):
            yield hit

    def _candidates(self, at: int, led: bool) -> tuple[Pattern, ...]:
        found = self.patterns.at(self.text, at, led)
        return found + self.rare if self.rare else found

    def _worded(self, pattern: Pattern) -> bool:
        """Whether the text has one of the words that the pattern is rare for."""
        if pattern.id not in self.words:
            self.words[pattern.id] = any(word in self.text for word in pattern.rare)
        return self.words[pattern.id]

    def _carry(self, hit: Hit) -> None:
        """A lead at the head of the sentence counts for its later clauses."""
        hit.leads, hit.start = self.pending, self.begin
        hit.interrupts = any(lead.kind == "break" for lead in self.pending)
        hit.score("lead", max(lead.points for lead in self.pending), self.pending[0].id, hit.end)

    def _lead(self, at: int) -> tuple[Hit, int]:
        """The hit with the points of its lead words, and where they end."""
        hit, body = Hit(at, at, self.sentence), at
        for _ in range(MOST_LEADS):
            m = self.patterns.lead.match(self.text, body)
            if not m:
                break
            lead = self.patterns.leads[m.lastgroup or ""]
            hit.interrupts = hit.interrupts or lead.kind == "break"
            if lead.points:
                hit.leads += (lead,)
                hit.score("lead", lead.points, lead.id, m.end())
            body = m.end()
        return hit, body

    def _score(self, hit: Hit, place: str, start: int, body: int = 0) -> None:
        """Scores what starts at `start`; of lead words alone (before `body`) the lead's points."""
        met, anywhere = _needs_met(hit.leads), place == "sentence" or "lead" in hit.points
        for pattern in self._candidates(start, led=bool(hit.leads)):
            wanted = pattern.needs in met and (anywhere or pattern.at in (place, "clause"))
            if not wanted or (pattern.rare and not self._worded(pattern)):
                continue
            m = pattern.regex.match(self.text, start)
            if m and self._allowed(pattern, hit, m):
                group = "lead" if m.end() <= body else pattern.group
                hit.score(group, pattern.points, pattern.id, m.end())
                hit.opens = hit.opens or pattern.opens

    def _allowed(self, pattern: Pattern, hit: Hit, match: re.Match[str]) -> bool:
        end = match.end()
        return (
            not (pattern.statement and not self._after_statement(hit))
            and not (pattern.impersonal and self._tells(hit))
            and (not pattern.regex.groupindex or agrees(match, self.text, hit.start))
            and not (pattern.unless and pattern.unless.match(self.text, end))
            and (pattern.question or hit.interrupts or not self._asks(end))
            and not (pattern.group == "reject" and not hit.interrupts and self._of_others(hit))
        )

    def _asks(self, end: int) -> bool:
        stop = STOP.search(self.text, max(0, end - 1), end + NEAR)
        if stop is None or "?" not in stop.group():
            return False
        return not self.text.endswith(_TAGS, 0, stop.start())

    def _of_others(self, hit: Hit) -> bool:
        """Whether the words rejected are a question or somebody else's belief."""
        before = self.text[self.before : self.begin].rstrip()
        if before.endswith(_BROKEN):
            return False
        line = self.text.rfind("\n", 0, self.before) + 1
        label = self.text[max(line, self.before - 30) : self.before].rstrip()
        claim = label + before if label.endswith(":") else before
        return before.endswith("?") or bool(self.patterns.guards["belief"].search(claim))

    def _stands(self, hit: Hit, place: str) -> bool:
        """Adds what the rest of the sentence says; False when the hit means nothing here."""
        if hit.exclaims:
            return self._exclaims(hit, place)
        hit.opens = hit.opens or hit.interrupts
        if 2 <= hit.total < ENOUGH:
            self._support(hit)
        if place in ("clause", "dash") and not hit.leads:
            if self._supposes():
                return False
            hit.opens = hit.total >= ENOUGH
            if place == "clause" and hit.opens and "retract" not in hit.points:
                hit.start = self.begin if hit.start - self.begin <= NEAR else hit.start
        if place == "word":
            lead_in = self.text[max(0, hit.start - 20) : hit.start]
            alone = len(hit.leads) < 2
            return hit.total >= ENOUGH and not (
                alone and self.patterns.guards["verb"].search(lead_in)
            )
        return True

    def _exclaims(self, hit: Hit, place: str) -> bool:
        """Lead words with nothing behind them only say where a restart opens (wait, oops, hmm)."""
        kept = place == "sentence" and any(k.carries or k.kind == "break" for k in hit.leads)
        if not hit.interrupts:
            hit.points.clear()
        hit.opens = kept
        return kept

    def _supposes(self) -> bool:
        """Whether the sentence opens with if, when or the like."""
        return bool(self.patterns.guards["hypothetical"].match(self.text, self.begin))

    def _after_statement(self, hit: Hit) -> bool:
        """Whether a sentence of one's own comes right before, and no colon or bullet."""
        if hit.start != self.begin:
            return self.text[hit.start - 2 : hit.start].strip(" ") in _BROKEN
        before = self.text[self.before : self.begin].rstrip()
        own = before[-1:] not in ("", ":", BLANK) and len(before.split()) > 2
        return own and not self._of_others(hit)

    def _tells(self, hit: Hit) -> bool:
        """Whether the sentence before, or this one before the hit, speaks of its writer."""
        return bool(_WRITER.search(self.text, self.before, hit.start))

    def _support(self, hit: Hit) -> None:
        stop = STOP.search(self.text, hit.end, hit.end + NEAR)
        limit = stop.start() if stop else hit.end + NEAR
        for support in self.patterns.supports:
            if m := support.regex.search(self.text, hit.end, limit):
                hit.score(support.group, support.points, support.id, m.end())


@lru_cache(maxsize=1024)
def _needs_met(leads: tuple[Lead, ...]) -> frozenset[str]:
    """The values of `Pattern.needs` that these lead words satisfy."""
    met = {"", *(lead.kind for lead in leads)}
    if leads:
        met.add("lead")
    if len(leads) > 1:
        met.add("error")
    if any(lead.kind in ("break", "error") or lead.carries for lead in leads):
        met.add("correcting")
    return frozenset(met)
