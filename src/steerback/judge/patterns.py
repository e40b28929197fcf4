"""The restart phrases as data: read, checked and compiled.

The file's text says what each field means; `docs/restarts.md` says why each entry is there. A bad
file raises `UserError` with one line that names the file, the entry and the key.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

from steerback.errors import UserError, nearest
from steerback.judge import learned as weights
from steerback.judge.learned import Learned
from steerback.judge.prefixes import prefixes

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

VERSION = 1
START = 5
"""Letters by which patterns are looked up."""
PLACES = ("sentence", "dash", "clause")
NEEDS = ("", "lead", "break", "error", "correcting")
KINDS = ("break", "error", "doubt", "filler")
GUARDS = (
    "hypothetical",
    "belief",
    "veto",
    "verb",
    "sample",
    "speaker",
    "answer",
    "about_self",
    "preamble",
)


@dataclass(frozen=True)
class Lead:
    """Words that introduce a restart: an interruption, a doubt or a filler."""

    id: str
    kind: str
    points: int
    carries: bool
    """Whether it counts for the whole sentence that it heads."""


@dataclass(frozen=True)
class Pattern:
    """One way to reject, admit, apologise, retract, redirect or restart."""

    id: str
    group: str
    """Points of one group do not add up."""
    points: int
    """4 is a restart by itself."""
    at: str
    """sentence: only where a sentence starts; dash: after a dash or an ellipsis too; clause: after a
    comma too."""
    regex: re.Pattern[str]
    unless: re.Pattern[str] | None
    """Matched where the phrase ends; a match means that it is not one."""
    needs: str
    """Which lead must come before: none, any with points (lead), an interruption (break), an
    apology (error; two leads count as one), or any of these but a plain doubt (correcting)."""
    question: bool
    """Whether it may be a question."""
    opens: bool
    """Whether a restart may begin here when the pattern alone is too weak."""
    statement: bool
    """Only after a sentence of one's own: not after a question, a belief of others or a colon."""
    impersonal: bool = False
    """Not right after a sentence that says I or my: there it goes on with the writer's story."""
    rare: tuple[str, ...] = ()
    """The pattern is only tried in texts that hold one of these; empty: in all."""


def _beginnings(start: str) -> list[str]:
    """ "", and the first letters of `start`, white space as a space."""
    letters = "".join(" " if c.isspace() else c for c in start)
    return [letters[:n] for n in range(len(letters) + 1)]


@dataclass(frozen=True)
class Patterns:
    source: str
    leads: Mapping[str, Lead]
    lead: re.Pattern[str]
    """Any lead with the punctuation after it; the group that matched is named l0, l1, ..."""
    patterns: tuple[Pattern, ...]
    starts: tuple[frozenset[str], ...]
    """What each pattern can start with."""
    lead_starts: frozenset[str]
    supports: tuple[Pattern, ...]
    guards: Mapping[str, re.Pattern[str]]
    learned: Learned | None = None
    """Weights that find what the phrases do not; a file of one's own has none."""
    _by_start: dict[tuple[str, bool], tuple[Pattern, ...]] = field(default_factory=dict)
    _leads: dict[str, bool] = field(default_factory=dict)

    @cached_property
    def _index(self) -> dict[str, list[int]]:
        """Places in `patterns` of those that can start with these letters."""
        index: dict[str, list[int]] = {}
        for n, starts in enumerate(self.starts):
            for start in starts if "" not in starts or not self.patterns[n].rare else ():
                index.setdefault(start, []).append(n)
        return index

    @cached_property
    def rare(self) -> tuple[Pattern, ...]:
        """The patterns that only some texts have a word for, and that start with any letters."""
        return tuple(
            p for p, s in zip(self.patterns, self.starts, strict=True) if p.rare and "" in s
        )

    def at(self, text: str, at: int, led: bool) -> tuple[Pattern, ...]:
        """The patterns that could match `text` at `at`, by its first letters; none of `rare`.

        Those that need a lead are among them only when `led`.
        """
        key = (text[at : at + START], led)
        if key not in self._by_start:
            places = {n for b in _beginnings(key[0]) for n in self._index.get(b, ())}
            found = (self.patterns[n] for n in sorted(places))
            self._by_start[key] = tuple(p for p in found if led or not p.needs)
        return self._by_start[key]

    def leads_at(self, text: str, at: int) -> bool:
        """Whether a lead could match there."""
        start = text[at : at + START]
        if start not in self._leads:
            self._leads[start] = any(b in self.lead_starts for b in _beginnings(start))
        return self._leads[start]


@dataclass(frozen=True)
class _Reader:
    """A table of the file, with the words to name it by."""

    path: str
    name: str
    table: Mapping[str, Any]

    def fail(self, key: str, what: str) -> NoReturn:
        raise UserError(f"{self.path}: {self.name}: {key}: {what}")

    def known(self, keys: Iterable[str]) -> None:
        keys = list(keys)
        for key in self.table:
            if key not in keys:
                self.fail(key, f"unknown key; {nearest(key, keys)}")

    def text(self, key: str, default: str | None = None) -> str:
        value = self.table.get(key, default)
        if not isinstance(value, str) or (not value and default is None):
            self.fail(key, "must be a string that is not empty")
        return value

    def choice(self, key: str, options: tuple[str, ...], default: str | None = None) -> str:
        value = self.text(key, default)
        if value not in options:
            self.fail(key, f"is {value!r}; use one of {', '.join(o for o in options if o)}")
        return value

    def points(self, low: int) -> int:
        value = self.table.get("points")
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= 4:
            self.fail("points", f"is {value!r}; use a whole number from {low} to 4")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.table.get(key, default)
        if not isinstance(value, bool):
            self.fail(key, f"is {value!r}; use true or false")
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        value = self.table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
            self.fail(key, f"is {value!r}; use a list of texts")
        return tuple(value)

    def regex(self, key: str, words: Mapping[str, str]) -> str:
        return expand(self, key, self.text(key), words)


_NAME = re.compile(r"\{([a-z_]+)\}")


def expand(reader: _Reader, key: str, text: str, words: Mapping[str, str]) -> str:
    """Puts words in for their {names}, words of words too. A name that is unknown or that
    contains itself, a regex that does not compile or matches nothing at all: UserError."""
    for _ in range(9):
        names = _NAME.findall(text)
        if not names:
            break
        for name in names:
            if name not in words:
                reader.fail(key, f"no word is named {name!r}; {nearest(name, words)}")
        text = _NAME.sub(lambda m: words[m.group(1)], text)
    else:
        reader.fail(key, "a word contains itself; break the circle")
    try:
        empty = re.compile(text).match("")
    except re.error as e:
        reader.fail(key, f"not a regular expression ({e})")
    if empty:
        reader.fail(key, "matches the empty string; it must require a word")
    return text


def _table(reader: _Reader, key: str) -> Mapping[str, Any]:
    value = reader.table.get(key)
    if not isinstance(value, dict):
        reader.fail(key, "this table is missing")
    return value


def _entries(reader: _Reader, key: str) -> list[_Reader]:
    value = reader.table.get(key)
    if not isinstance(value, list) or not value:
        reader.fail(key, f"needs at least one [[{key}]]")
    entries = []
    for n, table in enumerate(value, 1):
        name = f"{key} {n}"
        if not isinstance(table, dict):
            reader.fail(key, "entries are written as [[" + key + "]]")
        if isinstance(table.get("id"), str):
            name = f"{key} {table['id']!r}"
        entries.append(_Reader(reader.path, name, table))
    ids = [e.text("id") for e in entries]
    for entry, ident in zip(entries, ids, strict=True):
        if ids.count(ident) > 1:
            entry.fail("id", "occurs twice; give each entry its own")
    return entries


def _pattern(entry: _Reader, words: Mapping[str, str]) -> Pattern:
    entry.known(
        (
            "id",
            "group",
            "points",
            "at",
            "regex",
            "unless",
            "needs",
            "question",
            "opens",
            "statement",
            "impersonal",
            "rare",
        )
    )
    unless = entry.regex("unless", words) if "unless" in entry.table else None
    return Pattern(
        id=entry.text("id"),
        group=entry.text("group"),
        points=entry.points(1),
        at=entry.choice("at", PLACES),
        regex=re.compile(entry.regex("regex", words)),
        unless=re.compile(unless) if unless else None,
        needs=entry.choice("needs", NEEDS, ""),
        question=entry.flag("question", False),
        opens=entry.flag("opens", True),
        statement=entry.flag("statement", False),
        impersonal=entry.flag("impersonal", False),
        rare=entry.strings("rare"),
    )


def _support(entry: _Reader, words: Mapping[str, str]) -> Pattern:
    entry.known(("id", "group", "points", "regex"))
    table = {**entry.table, "at": "clause"}
    return _pattern(_Reader(entry.path, entry.name, table), words)


def parse(document: Mapping[str, Any], source: str) -> Patterns:
    """The patterns of one document that has been read as TOML; `source` names it in errors."""
    top = _Reader(source, "file", document)
    top.known(("version", "words", "guards", "lead", "pattern", "support"))
    if document.get("version") != VERSION:
        top.fail("version", f"is {document.get('version')!r}; this release reads {VERSION}")
    words_reader = _Reader(source, "words", _table(top, "words"))
    words = {name: words_reader.text(name) for name in words_reader.table}
    guards = _Reader(source, "guards", _table(top, "guards"))
    guards.known(GUARDS)
    leads = _entries(top, "lead")
    for lead in leads:
        lead.known(("id", "kind", "points", "carries", "regex"))
    patterns = tuple(_pattern(e, words) for e in _entries(top, "pattern"))
    return Patterns(
        source=source,
        leads={
            f"l{n}": Lead(
                e.text("id"), e.choice("kind", KINDS), e.points(0), e.flag("carries", False)
            )
            for n, e in enumerate(leads)
        },
        lead=_lead_regex([e.regex("regex", words) for e in leads]),
        patterns=patterns,
        starts=tuple(prefixes(p.regex.pattern, START) for p in patterns),
        lead_starts=frozenset().union(*(prefixes(e.text("regex"), START) for e in leads)),
        supports=tuple(_support(e, words) for e in _entries(top, "support")),
        guards={name: re.compile(guards.regex(name, words)) for name in GUARDS},
    )


def _lead_regex(regexes: list[str]) -> re.Pattern[str]:
    either = "|".join(f"(?P<l{n}>{regex})" for n, regex in enumerate(regexes))
    return re.compile(rf"(?:{either})(?:[\s,.!?:;…—–-]+|$)")


def load_patterns(path: str | Path) -> Patterns:
    """Reads a pattern file (TOML). UserError: no such file, not TOML, or not of this schema."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "not UTF-8"
        raise UserError(f"{path}: cannot read the pattern file ({reason}); check --patterns") from e
    return _parse_text(text, str(path))


def _parse_text(text: str, source: str) -> Patterns:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        reason = " ".join(str(e).split())
        raise UserError(f"{source}: not TOML ({reason}); correct that line") from e
    return parse(document, source)


@lru_cache(maxsize=1)
def packaged() -> Patterns:
    """The patterns that come with the package."""
    name = "restarts.toml"
    text = (files("steerback") / "data" / name).read_text(encoding="utf-8")
    return replace(_parse_text(text, name), learned=weights.packaged())
