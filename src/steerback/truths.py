"""What is known of the organisms from how they were made, beside what a run of the suite found."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Grid

from steerback import protocols, tomlfile
from steerback.errors import UserError
from steerback.presets import config_of
from steerback.protocols.base import Analysis
from steerback.run import analyse
from steerback.stats import Mean
from steerback.store import Store
from steerback.types import Rate

FOUND, OPEN, CONTRADICTED, ABSENT = "found", "open", "contradicted", "not measured"


@dataclass(frozen=True)
class Truth:
    organism: str
    protocol: str
    of: str
    """An arm, or a comparison of two."""
    measure: str
    because: str
    """What in its training makes it so."""
    above: float = -math.inf
    below: float = math.inf
    """The whole interval of the measure must lie between the two."""

    @property
    def expected(self) -> str:
        low, high = (f"{x:g}" for x in (self.above, self.below))
        if math.isinf(self.above):
            return f"< {high}"
        return f"> {low}" if math.isinf(self.below) else f"{low} to {high}"


@dataclass(frozen=True)
class Answer:
    """A truth, and what a run found. NaN: nothing."""

    truth: Truth
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    """Trials, or pairs."""

    @property
    def verdict(self) -> str:
        """`open` where the interval holds both what is known and its contrary."""
        if math.isnan(self.low):
            return ABSENT
        if self.low > self.truth.above and self.high < self.truth.below:
            return FOUND
        against = self.low >= self.truth.below or self.high <= self.truth.above
        return CONTRADICTED if against else OPEN

    def as_json(self) -> dict[str, Any]:
        numbers = {k: getattr(self, k) for k in ("value", "low", "high")}
        known = {k: v for k, v in asdict(self.truth).items() if v not in (math.inf, -math.inf)}
        finite = {k: None if math.isnan(v) else v for k, v in numbers.items()}
        return {**known, **finite, "n": self.n, "verdict": self.verdict}


def truths() -> list[Truth]:
    """All of the packaged file."""
    text = (files("steerback") / "data" / "truths.toml").read_text("utf-8")
    return [Truth(**entry) for entry in tomlfile.parse(text)["truth"]]


def answers(organism: str, found: Mapping[str, Analysis]) -> list[Answer]:
    """What is known of one organism, beside what its run found, by protocol."""
    return [_answer(t, found.get(t.protocol)) for t in truths() if t.organism == organism]


def answers_of(folder: Path) -> list[Answer]:
    """Of a stored run. UserError: nothing is known of its model."""
    with Store.open(folder, mode="ro") as store:
        config = config_of(store)
        organism = config.model.name.removeprefix("organism-")
        wanted = {t.protocol for t in truths() if t.organism == organism}
        if not wanted:
            known = ", ".join(sorted({t.organism for t in truths()}))
            raise UserError(
                f"{folder}: nothing is known of {organism!r}; runs of {known} have truths"
            )
        ran = protocols.with_needs(config.protocols)
        return answers(organism, analyse(store, [n for n in ran if n in wanted]))


def _answer(truth: Truth, analysis: Analysis | None) -> Answer:
    for of, measure, estimate, n in _estimates(analysis) if analysis else ():
        if (of, measure) == (truth.of, truth.measure):
            value = estimate.value if isinstance(estimate, Mean) else estimate.rate
            return replace(Answer(truth), value=value, low=estimate.low, high=estimate.high, n=n)
    return Answer(truth)


def _estimates(analysis: Analysis) -> Iterator[tuple[str, str, Mean | Rate, int]]:
    """(arm or comparison, measure, estimate, trials or pairs)"""
    for title, c in analysis.comparisons:
        yield title, c.measure, c.difference, c.pairs
    for summary in analysis.summaries:
        for measure, estimate in vars(summary).items():
            if isinstance(estimate, Mean | Rate):
                yield summary.arm, measure, estimate, summary.n


def show(found: Sequence[Answer], out: Console) -> None:
    """A line for each truth, by organism, and how many were found."""
    out.print("What is known of the organisms, and what was found", style="bold")
    for organism in dict.fromkeys(a.truth.organism for a in found):
        grid = Grid(organism, box=None, pad_edge=False)
        for column in ("found", "known", "n", ""):
            grid.add_column(column, no_wrap=True)
        for a in (a for a in found if a.truth.organism == organism):
            t = a.truth
            what = f"{t.protocol}: {t.of}, {t.measure}"
            style = "" if a.verdict == FOUND else "yellow"
            grid.add_row(what, interval(a), t.expected, str(a.n), a.verdict, style=style)
        out.print(grid)
    out.print(count(found))


def interval(answer: Answer) -> str:
    if math.isnan(answer.low):
        return "-"
    digits = 1 if "score" in answer.truth.measure else 3
    low, high = (f"{x:.{digits}f}" for x in (answer.low, answer.high))
    return f"{answer.value:.{digits}f} [{low}, {high}]"


def count(found: Iterable[Answer]) -> str:
    verdicts = [a.verdict for a in found]
    others = [f"{verdicts.count(v)} {v}" for v in (OPEN, CONTRADICTED, ABSENT) if v in verdicts]
    return ", ".join([f"{verdicts.count(FOUND)} of {len(verdicts)} found", *others])
