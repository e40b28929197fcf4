"""Figures as data: what a protocol wants drawn. Only the report draws."""

from __future__ import annotations

from dataclasses import dataclass

from steerback.stats import Mean
from steerback.types import Rate

Point = Mean | Rate | float | None
"""A value, with its interval if it has one. None: not known, nothing is drawn."""


@dataclass(frozen=True)
class Series:
    name: str
    """As the legend has it. Series of one name have one colour in all panels."""
    values: tuple[Point, ...]


@dataclass(frozen=True)
class Region:
    """A marked stretch of the x axis, [start, end)."""

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class Lines:
    """Lines with bands over one x axis, a panel under the other."""

    title: str
    caption: str
    x_label: str
    x: tuple[float, ...]
    panels: tuple[tuple[str, tuple[Series, ...]], ...]
    """(title, series), each series as long as `x`."""
    regions: tuple[Region, ...] = ()
    mark: float | None = None
    """Place of a vertical line."""


@dataclass(frozen=True)
class Dots:
    """Points with intervals: a row per name, a mark per series."""

    title: str
    caption: str
    x_label: str
    rows: tuple[str, ...]
    series: tuple[Series, ...]
    """Each as long as `rows`."""
    mark: float | None = None
    """Place of a vertical line, such as no difference."""


Chart = Lines | Dots
