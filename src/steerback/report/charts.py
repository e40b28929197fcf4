"""Draws the figures that protocols describe as data."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from steerback.protocols.charts import Chart, Dots, Lines, Point, Region, Series
from steerback.report.canvas import BLUE, GREEN, INK, LINE, MUTED, ORANGE, PINK, RED, SKY
from steerback.report.figures import short
from steerback.types import Rate

COLOURS = (BLUE, ORANGE, GREEN, RED, SKY, PINK)
MARKS = "osD^vP"
HATCHES = ("", "///", "...", "xxx")


def height(chart: Chart) -> float:
    """Inches."""
    if isinstance(chart, Lines):
        return 1.0 + 1.6 * len(chart.panels)
    return 1.1 + (0.14 + 0.12 * len(chart.series)) * len(chart.rows)


def draw(fig: Figure, chart: Chart) -> None:
    if isinstance(chart, Lines):
        _lines(fig, chart)
    else:
        _dots(fig, chart)


def _lines(fig: Figure, chart: Lines) -> None:
    panels = fig.subplots(len(chart.panels), 1, sharex=True, squeeze=False)[:, 0]
    names = _names([s for _, series in chart.panels for s in series])
    for axes, (title, series) in zip(panels, chart.panels, strict=True):
        for n, region in enumerate(chart.regions):
            _region(axes, region, n)
        if chart.mark is not None:
            axes.axvline(chart.mark, color=INK, lw=0.9, ls=":")
        for one in series:
            _line(axes, chart.x, one, COLOURS[names.index(one.name) % len(COLOURS)])
        axes.set_title(short(title, 60))
        axes.grid(axis="x", visible=False)
    panels[-1].set_xlabel(chart.x_label)
    panels[-1].set_xlim(min(chart.x), max(chart.x))
    found = {h.get_label(): h for a in panels for h in a.get_legend_handles_labels()[0]}
    lines_first = sorted(found.values(), key=lambda h: isinstance(h, Patch))
    longest = max(map(len, found), default=0)
    columns = 3 if longest <= 18 else 2
    fig.legend(handles=lines_first, loc="outside upper left", ncols=columns, columnspacing=1.2)


def _line(axes: Axes, x: Sequence[float], series: Series, colour: str) -> None:
    centre, low, high = np.array([_three(v) for v in series.values]).T
    axes.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)
    axes.plot(x, centre, color=colour, lw=1.5, label=short(series.name))


def _region(axes: Axes, region: Region, n: int) -> None:
    axes.axvspan(
        region.start,
        region.end,
        facecolor=LINE if n % 2 == 0 else "none",
        edgecolor=LINE,
        hatch=HATCHES[n % len(HATCHES)],
        alpha=0.45,
        lw=0,
        label=short(region.name),
        zorder=0,
    )


def _dots(fig: Figure, chart: Dots) -> None:
    axes = fig.subplots()
    spread = np.linspace(-0.28, 0.28, len(chart.series)) if len(chart.series) > 1 else [0.0]
    if chart.mark is not None:
        axes.axvline(chart.mark, color=MUTED, lw=0.9, ls=":")
    for n, (series, offset) in enumerate(zip(chart.series, spread, strict=True)):
        colour, mark = COLOURS[n % len(COLOURS)], MARKS[n % len(MARKS)]
        for y, value in enumerate(series.values):
            centre, low, high = _three(value)
            axes.plot((low, high), (y + offset,) * 2, color=colour, lw=1.2)
            axes.plot(centre, y + offset, mark, color=colour, ms=4)
        axes.plot([], [], mark, color=colour, ms=4, label=short(series.name))
    axes.set_yticks(range(len(chart.rows)), [short(name) for name in chart.rows])
    axes.set_ylim(len(chart.rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(chart.x_label)
    if len(chart.series) > 1:
        fig.legend(loc="outside upper left", ncols=len(chart.series), handletextpad=0.3)


def _names(series: Sequence[Series]) -> list[str]:
    return list(dict.fromkeys(s.name for s in series))


def _three(point: Point) -> tuple[float, float, float]:
    """Value and interval; the value alone where it has none, NaN where nothing is known."""
    if point is None:
        return math.nan, math.nan, math.nan
    if isinstance(point, (int, float)):
        return point, point, point
    value = point.rate if isinstance(point, Rate) else point.value
    low, high = (value if math.isnan(x) else x for x in (point.low, point.high))
    return value, low, high
