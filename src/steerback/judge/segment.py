"""Where the attempts of a response start: at explicit language that rejects or restarts it.

No model is asked. Phrases in the model's own prose score points (`scan.py`); a restart needs
`ENOUGH` of them, from one sentence or from neighbours. `docs/restarts.md` is the decision list;
`data/restarts.toml` holds the phrases.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from steerback.judge.learned import NAME, Learned, sentences
from steerback.judge.patterns import Patterns, packaged
from steerback.judge.prose import BLANK, Prose, prose
from steerback.judge.scan import ENOUGH, NEAR, STOP, Hit, Scan

_NAME = re.compile(
    r"[\s*]*(?!(?:NOTE|EDIT|UPDATE|STEP|WAIT|SORRY|CORRECTION|ANSWER|STOP)\b)"
    r"[A-Z][A-Z.'-]{2,15}(?: [A-Z.'-]{1,15})?\*{0,2}:"
)
_STAGE = re.compile(r"\n[ \t]*\([^()\n]{1,60}\)[ \t]*\n")
"""A stage direction on a line of its own."""
_POST = re.compile(r"[*_]*[\w.-]{2,30}[*_]*\s*·\s*\S")
_DEAR = re.compile(r"[\W_]*dear (?:mr|mrs|ms|dr|sir|madam|[a-z]+)\b[^.!?\n]{0,30},")
_OF_THE_LETTER = re.compile(r"\b(?:this|the|my) (?:letter|e-?mail|note|answer|response)\b")
# What a quotation means, in brackets after it.
_GLOSS = re.compile(r"""["”»’'*] ?\($""")
_TAG = re.compile(
    r"""[,!?—–-]["'’”]?\s*(?!(?:i|you|we|what|as|which|that|it|this|and|to)\b)(?:\w+ )?\w+ """
    r"""(?:said|says|say|asked|whispered|muttered|thought|replied|told|shouted|laughed)\b"""
    r"""|[,!?—–-]["'’”]?\s*(?:said|says|asked|whispered|muttered|replied|shouted) """
    r"""(?:the|a|my|his|her) \w"""
)
_LABEL = re.compile(
    r"(?:^|(?<=[\s.!?]))[\W\d]*(?P<who>[a-z][\w '-]{0,30}?)\s*(?:\([^)\n]{0,30}\))?\s*:\s+"
)


@dataclass(frozen=True)
class Restart:
    """text[start:end] is the phrase; an attempt starts at `start`."""

    start: int
    end: int
    pattern_id: str
    """The entry of the pattern file that scored most."""


def segment(text: str, patterns: Patterns | None = None) -> list[int]:
    """Character offsets at which attempts start; the first is 0."""
    return [0, *(r.start for r in restarts(text, patterns))]


def restarts(text: str, patterns: Patterns | None = None) -> list[Restart]:
    """The restarts of a response, in order.

    One that opens the response is none: no attempt comes before it.
    """
    patterns = patterns or packaged()
    view = prose(text)
    hits = list(Scan(view.text, view.cased, patterns).hits())
    events = [event for chain in _chains(hits) for event in _events(view.text, chain, patterns)]
    events = _merged(view.text, events, patterns)
    if patterns.learned is not None:
        events = _joined(view.text, events, patterns.learned)
    events = _once(view.text, events)
    return [
        Restart(view.origin(e.start), view.origin(e.end), e.best[1])
        for e in events
        if _has_attempt(view.text[: e.start], patterns)
        and not _scripted(view, e, patterns)
        and not _under_a_name(text[max(0, view.origin(e.start) - NEAR) : view.origin(e.start)])
        and not _is_title(text[view.origin(e.start) : view.origin(e.end)])
    ]


def _chains(hits: Iterable[Hit]) -> Iterator[list[Hit]]:
    """Hits of one sentence and of sentences next to each other, if they are not far apart."""
    chain: list[Hit] = []
    for hit in hits:
        last = chain[-1] if chain else hit
        apart = hit.sentence - last.sentence > 1 or hit.start - last.end > NEAR
        if apart or (hit.total == 1 and _sum(chain) >= ENOUGH):
            yield chain
            chain = []
        chain.append(hit)
    if chain:
        yield chain


def _events(text: str, chain: list[Hit], patterns: Patterns) -> Iterator[Hit]:
    """The restarts of a chain: one, or more where a new answer stands between them."""
    part: list[Hit] = []
    for hit in chain:
        if (
            part
            and hit.leads
            and hit.total >= ENOUGH
            and patterns.guards["answer"].search(text, part[-1].end, hit.start)
            and _sum(part) >= ENOUGH
        ):
            yield _event(text, part)
            part = []
        part.append(hit)
    while part and part[-1].exclaims:
        part.pop()
    if _sum(part) >= ENOUGH:
        yield _event(text, part)


def _sum(hits: Iterable[Hit]) -> int:
    best: dict[str, int] = {}
    for hit in hits:
        for group, points in hit.points.items():
            best[group] = max(best.get(group, 0), points)
    return sum(best.values())


def _event(text: str, part: list[Hit]) -> Hit:
    """One restart, from the first hit that can open it to the last."""
    first = _opening(text, part)
    event = Hit(part[first].start, part[first].end, part[first].sentence)
    event.leads = part[first].leads
    for hit in part[first:]:
        event.absorb(hit)
    return event


def _opening(text: str, part: list[Hit]) -> int:
    """The hit that a restart starts with.

    A mere remark on the answer opens it only if no interjection does in the sentence after it, and
    a weak phrase only if no interruption breaks off its own sentence.
    """
    for n, hit in enumerate(part):
        later = part[n + 1 :]
        if _sum(part[n:]) < ENOUGH:
            return 0
        remark = hit.total == 1 and bool(later) and later[0].sentence > hit.sentence
        broken = any(
            h.sentence == hit.sentence and h.interrupts and h.total >= ENOUGH for h in later
        )
        aside = remark and (later[0].leads or "\n\n" in text[hit.end : later[0].start])
        held = not hit.opens or broken or aside
        if hit.total >= ENOUGH or not held:
            return n
    return 0


def _merged(text: str, events: list[Hit], patterns: Patterns) -> list[Hit]:
    """A phrase that goes on about the restart just before it belongs to that one."""
    merged: list[Hit] = []
    for event in events:
        if merged and _goes_on(text[merged[-1].end : event.start], event, patterns):
            merged[-1].absorb(event)
        else:
            merged.append(event)
    return merged


def _goes_on(gap: str, event: Hit, patterns: Patterns) -> bool:
    if len(gap) > NEAR:
        return False
    if len(gap.split()) <= 2:
        return not (event.leads and patterns.guards["answer"].search(gap))
    stops = len(STOP.findall(gap.strip()))
    if stops > 2 or event.leads:
        return False
    if set(event.points) <= {"restart", "offer", "retract"}:
        return stops <= 1 and bool(patterns.guards["about_self"].search(gap))
    return True


def _joined(text: str, events: Sequence[Hit], learned: Learned) -> list[Hit]:
    """The restarts of the phrases and those that the weights find, in order.

    One that both find starts with the first sentence that either says.
    """
    cut = sentences(text)
    starts = [s.start for s in cut]
    at = [bisect_right(starts, e.start) - 1 for e in events]
    found = list(events)
    for first, last in learned.runs(text, cut):
        near = [n for n, place in enumerate(at) if first - 1 <= place <= last + 1]
        if not near:
            hit = Hit(cut[first].start, cut[last].end, first)
            hit.score("learned", 1, NAME, cut[first].end)
            found.append(hit)
        elif at[near[0]] > first and events[near[0]].start - cut[first].start <= NEAR:
            found[near[0]] = replace(events[near[0]], start=cut[first].start)
    return sorted(found, key=lambda e: e.start)


def _once(text: str, events: list[Hit]) -> list[Hit]:
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


def _scripted(view: Prose, event: Hit, patterns: Patterns) -> bool:
    """Whether the line is spoken by a character or is a sample of wording."""
    text = view.text
    line = text.rfind("\n", 0, event.start) + 1
    opening = text[line : event.start]
    if opening.lstrip().startswith(("– ", "— ")) or _GLOSS.search(view.cased, line, event.start):
        return True
    if _DEAR.match(opening) and not _OF_THE_LETTER.search(text, event.start, event.end + NEAR // 5):
        return True
    if _NAME.match(view.cased, line, event.start) or _TAG.match(text, event.end):
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
    """Whether the line above is a NAME in capitals, as in a screenplay, or heads a post."""
    lines = _STAGE.sub("\n", before.rstrip(" \t")).split("\n")
    above = lines[-2].strip() if len(lines) > 1 and not lines[-1].strip() else ""
    if _POST.match(above):
        return True
    return above.isupper() and above[-1].isalnum() | (above[-1] == ")") and len(above.split()) < 5


def _is_title(phrase: str) -> bool:
    """Whether Every Word Is Capitalised, as in the name of a song."""
    words = re.findall(r"(?<=\w )[A-Za-z][\w'’]{2,}", phrase)
    return len(words) >= 2 and all(w[0].isupper() and not w.isupper() for w in words)
