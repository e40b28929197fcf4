"""Where the attempts of a response start: at explicit language that rejects or restarts it.

No model is asked. A phrase is looked for where a sentence or a clause starts, in the model's own
prose only; it scores points, and a restart needs `ENOUGH`, from one sentence or from neighbours.
`docs/restarts.md` is the decision list; `data/restarts.toml` holds the phrases.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from steerback.judge.patterns import Lead, Pattern, Patterns, packaged
from steerback.judge.prose import BLANK, prose

ENOUGH = 4
"""Points of a restart."""
NEAR = 300
"""Characters: an apology or a second phrase this close to a restart belongs to it."""
MOST_LEADS = 9
"""Lead words in a row that are read: a text that only says "wait" takes no longer than another."""

_MARKERS = (
    r"\s*(?:(?:[-*+•>]|#{1,6}|\(?\d{1,3}[.)]|[a-z][.)]|\[[ x]\])[ \t]+)*"
    r"(?:[\U0001F000-\U0001FAFF\u2600-\u27BF\uFE0F]+\s*)?[.…\s]*"
)
_FIRST = re.compile(_MARKERS)
_ANCHOR = re.compile(
    r"[\n.!?:…;,(\[—– -](?:"
    r"(?P<sentence>(?:(?<=\n)|(?<=[.!?:…])[.!?…]*[)\]\"']*\s)" + _MARKERS + ")"
    r"|(?P<dash>(?:(?<=\.)\.+|(?<=-)-+|(?<= )-{1,3}(?= )|(?<=[…—–]))[\s.…]*)"
    r"|(?P<clause>(?<=[;,(\[])\s*)"
    r"|(?P<word>(?<=[a-z0-9'] )(?=(?:no,? |oh |but |or |ok |okay |oh man )?"
    r"(?:wait|hold on|hang on|scratch that|strike that|scrap that|oops|no sorry|"
    r"sorry, (?:that|this|i|no)|ugh, (?:that|i)|"
    r"let me (?:start over|start again|try again|redo)|this is not what i)\b)))"
)
_LABEL = re.compile(
    r"(?:^|(?<=[\s.!?]))[\W\d]*(?P<who>[a-z][\w .'-]{0,30}?)\s*(?:\([^)\n]{0,30}\))?\s*:\s+"
)
_CORRECTS = ("break", "error")
_BROKEN = ("-", "—", "–", "…", "..")
"""What a sentence that is broken off ends with."""
_STOP = re.compile(r"[.!?…]+(?=\s|$|[)\"'\]])|\n")


@dataclass(frozen=True)
class Restart:
    """text[start:end] is the phrase; an attempt starts at `start`."""

    start: int
    end: int
    pattern_id: str
    """The entry of the pattern file that scored most."""


@dataclass
class _Hit:
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

    def score(self, group: str, points: int, name: str, end: int) -> None:
        self.points[group] = max(self.points.get(group, 0), points)
        if points > self.best[0]:
            self.best = (points, name)
        self.end = max(self.end, end)

    def absorb(self, other: _Hit) -> None:
        for group, points in other.points.items():
            self.score(group, points, other.best[1], other.end)
        self.sentence = other.sentence


def segment(text: str, patterns: Patterns | None = None) -> list[int]:
    """Character offsets at which attempts start; the first is 0."""
    return [0, *(r.start for r in restarts(text, patterns))]


def restarts(text: str, patterns: Patterns | None = None) -> list[Restart]:
    """The restarts of a response, in order.

    One that opens the response is none: no attempt comes before it.
    """
    patterns = patterns or packaged()
    view = prose(text)
    hits = list(_Scan(view.text, view.cased, patterns).hits())
    if not hits:
        return []
    events = [event for chain in _chains(hits) for event in _events(view.text, chain, patterns)]
    events = _once(view.text, _merged(view.text, events, patterns))
    return [
        Restart(view.origin(e.start), view.origin(e.end), e.best[1])
        for e in events
        if _has_attempt(view.text[: e.start], patterns)
        and not _scripted(view.text, e, patterns)
        and not _under_a_name(text[max(0, view.origin(e.start) - NEAR) : view.origin(e.start)])
        and not _is_title(text[view.origin(e.start) : view.origin(e.end)])
    ]


@dataclass
class _Scan:
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

    def hits(self) -> Iterator[_Hit]:
        first = _FIRST.match(self.text)
        yield from self._at("sentence", first.end() if first else 0)
        for m in _ANCHOR.finditer(self.text, first.end() if first else 0):
            yield from self._at(self._place(m), m.end())

    def _place(self, anchor: re.Match[str]) -> str:
        """sentence, dash, clause or word; a bracket opens a sentence, a wrapped line does not."""
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

    def _at(self, place: str, at: int) -> Iterator[_Hit]:
        if place == "sentence":
            self.sentence += 1
            self.before, self.begin = self.begin, at
            self.pending = ()
        led = bool(self.pending) or self.patterns.leads_at(self.text, at)
        if not (led or self.patterns.at(self.text, at, led=False)):
            return
        hit, body = self._lead(at)
        if place == "sentence":
            self.pending = tuple(lead for lead in hit.leads if lead.carries)
        elif place == "clause" and not hit.leads and self.pending:
            self._carry(hit)
        if not self.patterns.guards["veto"].match(self.text, body):
            self._score(hit, place, body)
            if body > at:
                self._score(hit, place, at, body)
            if self._stands(hit, place):
                yield hit

    def _carry(self, hit: _Hit) -> None:
        """A lead at the head of the sentence counts for its later clauses."""
        hit.leads, hit.start = self.pending, self.begin
        hit.interrupts = any(lead.kind == "break" for lead in self.pending)
        hit.score("lead", max(lead.points for lead in self.pending), self.pending[0].id, hit.end)

    def _lead(self, at: int) -> tuple[_Hit, int]:
        """The hit with the points of its lead words, and where they end."""
        hit, body = _Hit(at, at, self.sentence), at
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

    def _score(self, hit: _Hit, place: str, start: int, body: int = 0) -> None:
        """Scores what starts at `start`; of lead words alone (before `body`) the lead's points."""
        for pattern in self.patterns.at(self.text, start, bool(hit.leads)):
            if not self._placed(pattern, hit, place):
                continue
            m = pattern.regex.match(self.text, start)
            if m and self._allowed(pattern, hit, m.end()):
                group = "lead" if m.end() <= body else pattern.group
                hit.score(group, pattern.points, pattern.id, m.end())
                hit.opens = hit.opens or pattern.opens

    def _placed(self, pattern: Pattern, hit: _Hit, place: str) -> bool:
        return (
            place == "sentence" or pattern.at in (place, "clause") or "lead" in hit.points
        ) and (not pattern.needs or _is_led(pattern.needs, hit.leads))

    def _allowed(self, pattern: Pattern, hit: _Hit, end: int) -> bool:
        return (
            not (pattern.statement and not self._after_statement(hit))
            and not (pattern.unless and pattern.unless.match(self.text, end))
            and (pattern.question or hit.interrupts or not self._asks(end))
            and not (pattern.group == "reject" and not hit.interrupts and self._of_others(hit))
        )

    def _asks(self, end: int) -> bool:
        stop = _STOP.search(self.text, max(0, end - 1), end + NEAR)
        return bool(stop and "?" in stop.group())

    def _of_others(self, hit: _Hit) -> bool:
        """Whether the words rejected are a question or somebody else's belief."""
        before = self.text[self.before : self.begin]
        return before.rstrip().endswith("?") or bool(self.patterns.guards["belief"].search(before))

    def _stands(self, hit: _Hit, place: str) -> bool:
        """Adds what the rest of the sentence says; False when the hit means nothing here."""
        if hit.total < ENOUGH and not set(hit.points) - {"lead"}:
            return self._exclaims(hit, place)
        hit.opens = hit.opens or hit.interrupts
        if 2 <= hit.total < ENOUGH:
            self._support(hit)
        if place in ("clause", "dash") and not hit.leads:
            if self.patterns.guards["hypothetical"].match(self.text, self.begin):
                return False
            hit.opens = hit.total >= ENOUGH
            if place == "clause" and hit.opens and "retract" not in hit.points:
                hit.start = self.begin if hit.start - self.begin <= NEAR else hit.start
        if place == "word":
            lead_in = self.text[max(0, hit.start - 20) : hit.start]
            return hit.total >= ENOUGH and not self.patterns.guards["verb"].search(lead_in)
        return True

    def _exclaims(self, hit: _Hit, place: str) -> bool:
        """Lead words with nothing behind them only say where a restart opens (wait, oops, hmm)."""
        kept = place == "sentence" and any(k.carries or k.kind == "break" for k in hit.leads)
        if not hit.interrupts:
            hit.points.clear()
        hit.opens = kept
        return kept

    def _after_statement(self, hit: _Hit) -> bool:
        """Whether a sentence of one's own comes right before, and no colon or bullet."""
        if hit.start != self.begin:
            return self.text[hit.start - 2 : hit.start].strip(" ") in _BROKEN
        before = self.text[self.before : self.begin].rstrip()
        own = before[-1:] not in ("", ":", BLANK) and len(before.split()) > 2
        return own and not self._of_others(hit)

    def _support(self, hit: _Hit) -> None:
        stop = _STOP.search(self.text, hit.end, hit.end + NEAR)
        limit = stop.start() if stop else hit.end + NEAR
        for support in self.patterns.supports:
            if m := support.regex.search(self.text, hit.end, limit):
                hit.score(support.group, support.points, support.id, m.end())


def _is_led(needs: str, leads: tuple[Lead, ...]) -> bool:
    """Whether the lead words are of the kind that a pattern needs."""
    kinds = {lead.kind for lead in leads}
    return (
        (needs == "lead" and bool(leads))
        or needs in kinds
        or (needs == "error" and len(leads) > 1)
        or (needs == "correcting" and any(k.kind in _CORRECTS or k.carries for k in leads))
    )


def _chains(hits: Iterable[_Hit]) -> Iterator[list[_Hit]]:
    """Hits of one sentence and of sentences next to each other, if they are not far apart."""
    chain: list[_Hit] = []
    for hit in hits:
        last = chain[-1] if chain else hit
        if hit.sentence - last.sentence > 1 or hit.start - last.end > NEAR:
            yield chain
            chain = []
        chain.append(hit)
    yield chain


def _events(text: str, chain: list[_Hit], patterns: Patterns) -> Iterator[_Hit]:
    """The restarts of a chain: one, or more where a new answer stands between them."""
    part: list[_Hit] = []
    for hit in chain:
        if (
            part
            and hit.interrupts
            and hit.total >= ENOUGH
            and patterns.guards["answer"].search(text, part[-1].end, hit.start)
            and _sum(part) >= ENOUGH
        ):
            yield _event(part)
            part = []
        part.append(hit)
    if _sum(part) >= ENOUGH:
        yield _event(part)


def _sum(hits: Iterable[_Hit]) -> int:
    best: dict[str, int] = {}
    for hit in hits:
        for group, points in hit.points.items():
            best[group] = max(best.get(group, 0), points)
    return sum(best.values())


def _event(part: list[_Hit]) -> _Hit:
    """One restart, from the first hit that can open it."""
    first = next((n for n, h in enumerate(part) if h.opens or h.total >= ENOUGH), 0)
    for n, hit in enumerate(part[first:], first):
        if hit.sentence != part[first].sentence:
            break
        if part[first].total < ENOUGH <= hit.total and hit.interrupts:
            first = n
            break
    if _sum(part[first:]) < ENOUGH:
        first = 0
    event = _Hit(part[first].start, part[first].end, part[first].sentence)
    event.leads = part[first].leads
    for hit in part[first:]:
        event.absorb(hit)
    return event


def _merged(text: str, events: list[_Hit], patterns: Patterns) -> list[_Hit]:
    """A phrase that goes on about the restart just before it belongs to that one."""
    merged: list[_Hit] = []
    for event in events:
        if merged and _goes_on(text[merged[-1].end : event.start], event, patterns):
            merged[-1].absorb(event)
        else:
            merged.append(event)
    return merged


def _goes_on(gap: str, event: _Hit, patterns: Patterns) -> bool:
    if len(gap) > NEAR:
        return False
    if len(gap.split()) <= 2:
        return not (event.leads and patterns.guards["answer"].search(gap))
    stops = len(_STOP.findall(gap.strip()))
    if stops > 2 or any(lead.kind in ("break", "error") for lead in event.leads):
        return False
    if set(event.points) <= {"restart", "lead", "offer"}:
        return stops <= 1 and bool(patterns.guards["about_self"].search(gap))
    return True


def _once(text: str, events: list[_Hit]) -> list[_Hit]:
    """Drops the repeats of a text that goes round in a circle."""
    text, kept = text.rstrip(), events[:1]
    for last, event in pairwise(events):
        period = event.start - last.start
        again = text[event.start : event.start + period]
        if len(again) < 0.6 * period or not text[last.start : event.start].startswith(again):
            kept.append(event)
    return kept


def _has_attempt(before: str, patterns: Patterns) -> bool:
    """Whether there is an answer before a restart, not just a heading or a greeting."""
    rest = re.sub(r"\A\s*#{1,6} [^\n]*", "", before)
    rest = patterns.guards["preamble"].sub("", rest) if len(rest) < 200 else rest
    return any(c.isalnum() or c == BLANK for c in rest)


def _scripted(text: str, event: _Hit, patterns: Patterns) -> bool:
    """Whether the line is spoken by a character or is a sample of wording."""
    line = text.rfind("\n", 0, event.start) + 1
    opening = text[line : event.start]
    if opening.lstrip().startswith(("– ", "— ")):
        return True
    for label in (_LABEL.match(opening), _LABEL.search(opening[-60:])):
        if label and patterns.guards["speaker"].fullmatch(label.group("who")):
            return True
    above = text[max(0, line - 200) : line].rstrip()
    intro = above[above.rfind("\n") + 1 :]
    sample = patterns.guards["sample"]
    return bool(sample.search(intro) or sample.search(opening[-NEAR:]) or _repeats(text, opening))


def _repeats(text: str, opening: str) -> bool:
    """Whether the label at the head of the line heads other lines too, as in a script."""
    label = _LABEL.match(opening)
    if not label:
        return False
    head = re.compile(rf"(?m)^[\W\d]*{re.escape(label.group('who'))}\s*:")
    return sum(1 for _ in head.finditer(text)) > 1


def _under_a_name(before: str) -> bool:
    """Whether the line above is a NAME in capitals, as in a screenplay."""
    lines = before.rstrip(" \t").split("\n")
    above = lines[-2].strip() if len(lines) > 1 and not lines[-1].strip() else ""
    return above.isupper() and above[-1].isalnum() | (above[-1] == ")") and len(above.split()) < 5


def _is_title(phrase: str) -> bool:
    """Whether Every Word Is Capitalised, as in the name of a song."""
    words = re.findall(r"(?<=\w )[A-Za-z][\w'’]{2,}", phrase)
    return len(words) >= 2 and all(w[0].isupper() and not w.isupper() for w in words)
