"""Figures that protocols describe as data: what is drawn is what was said."""

from __future__ import annotations

import math

import numpy as np
import pytest
from report_runs import HOSTILE

from steerback.protocols.charts import Dots, Lines, Region, Series
from steerback.report import charts
from steerback.report.canvas import canvas
from steerback.report.gallery import Gallery
from steerback.stats import Mean
from steerback.types import Rate

KNOWN = Mean(2.0, 1.0, 4.0, 9, 3)
LONE = Mean(5.0, math.nan, math.nan, 9, 1)


def lines() -> Lines:
    series = Series("a", (1.0, KNOWN, None))
    other = Series(HOSTILE[0], (None, LONE, 3.0))
    regions = (Region("off topic", 0, 1), Region("on topic", 1, 2))
    panels = (("first", (series, other)), (HOSTILE[-1], (series,)))
    return Lines("a title", "said", "token", (0.0, 1.0, 2.0), panels, regions, mark=1)


def dots() -> Dots:
    rows = ("latent 7", HOSTILE[2])
    rate = Rate(1, 4, 2, 0, 0.1, 0.6, "Wilson")
    return Dots("b", "said", "x", rows, (Series("a", (KNOWN, None)), Series("b", (rate, 1.0))), 0.0)


def test_lines_have_their_values_bands_and_regions():
    with canvas(charts.height(lines())) as fig:
        charts.draw(fig, lines())
        first, second = fig.axes
        assert first.lines[1].get_ydata() == pytest.approx([1, 2, np.nan], nan_ok=True)
        assert first.lines[2].get_ydata() == pytest.approx([np.nan, 5, 3], nan_ok=True)
        band = first.collections[0].get_paths()[0].vertices
        assert (band[:, 1].min(), band[:, 1].max()) == (1, 4)
        assert first.lines[1].get_color() == second.lines[1].get_color()
        shown = [t.get_text() for t in fig.legends[0].get_texts()]
        assert shown == ["a", HOSTILE[0], "off topic", "on topic"]


def test_dots_stand_where_they_should():
    with canvas(charts.height(dots())) as fig:
        charts.draw(fig, dots())
        (axes,) = fig.axes
        points = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 1]
        assert np.ravel(points) == pytest.approx([2, np.nan, 0.25, 1], nan_ok=True)
        intervals = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 2]
        assert intervals[3] == pytest.approx([0.1, 0.6])  # the mark and series a come first


def test_a_protocols_charts_are_kept_and_escaped(tmp_path):
    gallery = Gallery(tmp_path)
    for chart in (lines(), dots()):
        name = ["run", "traces", chart.title]
        shown = gallery.draw(
            name, charts.height(chart), "x", lambda fig, c=chart: charts.draw(fig, c)
        )
        assert (tmp_path / f"{shown.name}.png").stat().st_size > 5000
        assert "<script" not in shown.svg
        assert "<img" not in shown.svg
