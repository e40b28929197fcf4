"""Arms of one model as a table at the terminal: nothing is left out where it is narrow.

Measures stand in rows while the arms fit side by side. Else arms stand in rows, and the measures are
split over as many tables as the width asks for; numbers that are read together stay together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table

from steerback.stats import Mean, Summary
from steerback.types import Rate

FEW = 3
"""Arms that are set side by side if they fit."""
NAMES, SHORTEST = 5, 16
"""Names of arms are broken where they take more than a fifth of the width, and more than 16 columns."""
EDGE, PADDING = 1, 2
"""Columns of a table's left edge, and of what stands behind each cell."""
ENDLESS = 10_000


class Row(NamedTuple):
    """A measure: its full name, a short one for the head of a column, and how an arm shows it."""

    name: str
    short: str
    cell: Callable[[Summary], str]


def percent(rate: Rate | Mean, digits: int = 1) -> str:
    """`12.3 [10.1, 14.9]` per cent; a dash where it is not defined."""
    value = rate.rate if isinstance(rate, Rate) else rate.value
    return interval(100 * value, 100 * rate.low, 100 * rate.high, digits)


def score(mean: Mean) -> str:
    return interval(mean.value, mean.low, mean.high, 1)


def interval(value: float, low: float, high: float, digits: int) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


GROUPS: tuple[tuple[Row, ...], ...] = (
    (
        Row("trials scored", "trials", lambda s: f"{s.n}"),
        Row("clusters", "clusters", lambda s: f"{s.clusters}"),
        Row("missing", "missing", lambda s: f"{s.missing}"),
    ),
    (Row("first-attempt score", "first score", lambda s: score(s.first_score)),),
    (
        Row("multi-attempt %", "multi-attempt %", lambda s: percent(s.multi_attempt)),
        Row("ESR %", "ESR %", lambda s: percent(s.esr)),
        Row("ESR above chance, points", "ESR above chance", lambda s: percent(s.esr_above_chance)),
    ),
    (
        Row("improved, of restarted %", "improved %", lambda s: percent(s.cond_improvement)),
        Row("improved by chance %", "by chance %", lambda s: percent(s.chance_improvement)),
        Row(
            "improved above chance, points",
            "above chance",
            lambda s: percent(s.improvement_above_chance),
        ),
    ),
    (
        Row("implicit recovery %", "implicit recovery %", lambda s: percent(s.implicit_recovery)),
        Row("implicit decline %", "decline %", lambda s: percent(s.implicit_decline)),
        Row("degraded %", "degraded %", lambda s: percent(s.degraded)),
    ),
)
"""Measures that are read together stand in one table."""


@dataclass(frozen=True)
class ArmTable:
    """The arms of `model`, fitted to the console when it is printed."""

    model: str
    arms: Sequence[Summary]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if len(self.arms) <= FEW:
            table = self._side_by_side()
            whole = Measurement.get(console, options.update(max_width=ENDLESS), table)
            if whole.maximum <= options.max_width:
                yield table
                return
        yield from self._stacked(options.max_width)

    def _side_by_side(self) -> Table:
        table = Table(title=self.model, title_justify="left")
        table.add_column("", no_wrap=True)
        for s in self.arms:
            table.add_column(_name(s), justify="right", no_wrap=True)
        for row in (row for group in GROUPS for row in group):
            table.add_row(row.name, *(row.cell(s) for s in self.arms))
        return table

    def _stacked(self, width: int) -> Iterator[Table]:
        """A row per arm; as many tables as it takes."""
        names = min(max(len(_name(s)) for s in self.arms), max(SHORTEST, width // NAMES))
        room = width - EDGE - PADDING - names
        for number, rows in enumerate(_packed([self._sized(group) for group in GROUPS], room)):
            title = self.model if number == 0 else f"{self.model}, continued"
            table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
            table.show_edge = False
            table.add_column("", width=names)
            for row in rows:
                table.add_column(row.short, justify="right")
            for s in self.arms:
                table.add_row(_name(s), *(row.cell(s) for row in rows))
            yield table

    def _sized(self, group: Sequence[Row]) -> list[tuple[Row, int]]:
        """Each measure with the columns that it takes: cells are whole, heads break at spaces."""
        return [
            (row, PADDING + max(map(len, (*row.short.split(), *map(row.cell, self.arms)))))
            for row in group
        ]


def _packed(groups: Sequence[Sequence[tuple[Row, int]]], room: int) -> Iterator[list[Row]]:
    """Rows in order, in parts that fit; a group is parted only where it alone does not fit."""
    part: list[Row] = []
    left = room
    for group in groups:
        if part and sum(size for _, size in group) > left:
            yield part
            part, left = [], room
        for row, size in group:
            if part and size > left:
                yield part
                part, left = [], room
            part.append(row)
            left -= size
    yield part


def _name(s: Summary) -> str:
    return f"{s.protocol}, {s.arm}"
