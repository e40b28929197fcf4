"""One look for every figure, and the three forms it is kept in: SVG file, PNG file, SVG in the page.

The page's copy takes its colours from the page's style sheet, so that it follows light and dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

INK, MUTED, LINE, PAPER = "#16191d", "#57606a", "#d0d7de", "#fffffe"
BLUE, ORANGE, GREEN, RED, SKY, PINK = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#d55e00",
    "#56b4e9",
    "#cc79a7",
)
"""Okabe and Ito (2008): told apart with every common kind of colour blindness."""
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    LINE: "--line",
    PAPER: "--paper",
    BLUE: "--blue",
    ORANGE: "--orange",
    GREEN: "--green",
    RED: "--red",
    SKY: "--sky",
    PINK: "--pink",
}
WIDTH = 4.5
"""Inches: on a phone the figure is about as wide as the screen, and its text stays readable."""
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "figure.facecolor": PAPER,
    "text.color": INK,
    # labels come from users and models: a dollar sign in one is no formula
    "text.parse_math": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "none",
}


@contextmanager
def canvas(height: float) -> Iterator[Figure]:
    """A figure of the common width, `height` in inches, drawn in the common style."""
    with mpl.rc_context(STYLE):
        yield Figure(figsize=(WIDTH, height), layout="constrained")


def fit(figure: Figure) -> None:
    """Let labels of x axes that would leave the figure at its right end where the axes do."""
    figure.draw_without_rendering()
    for axes in figure.axes:
        label = axes.xaxis.label
        if label.get_window_extent().x1 > figure.bbox.x1:
            label.set(x=1, horizontalalignment="right")


def keep(figure: Figure, folder: Path, name: str, alt: str) -> Markup:
    """Write NAME.svg and NAME.png into `folder`; the SVG to be put into the page."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        fit(figure)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(folder / f"{name}.png", dpi=200, metadata={"Software": None})
    (folder / f"{name}.svg").write_text(drawn.getvalue(), encoding="utf-8")
    return inline(drawn.getvalue(), name, alt)


def inline(svg: str, name: str, alt: str) -> Markup:
    """An SVG document as an element of the page: own ids, the page's colours and fonts."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="([^"]+)"', rf' id="{name}-\1"', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    head = Markup('<svg role="img" aria-label="{}"').format(alt)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return Markup(svg.replace("<svg", str(head), 1))  # matplotlib escapes the texts it draws
