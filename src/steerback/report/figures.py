"""The figures of a report. Each function draws one; nothing is smoothed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from steerback.report.canvas import BLUE, GREEN, INK, LINE, MUTED, ORANGE, PAPER, RED
from steerback.report.doses import Dose
from steerback.report.gather import Row
from steerback.report.published import Figure as Number
from steerback.report.strengths import CLOSE, Strength
from steerback.stats import Summary

LONGEST = 34


def short(text: str, longest: int = LONGEST) -> str:
    """Cut to what fits; what no font can show is replaced."""
    text = "".join(c if c.isprintable() else "\ufffd" for c in text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


# --- rates beside the published ones --------------------------------------------------------------

TICKS = (0, 1, 5, 10, 25, 50, 75, 100)


def rates(fig: Figure, ours: Sequence[Summary], theirs: Mapping[str, Mapping[str, Number]]) -> None:
    """Restarts and ESR per model, on a square-root scale: published rates are near zero."""
    names = [short(f"{s.model}, {s.arm}") for s in ours] + [short(m.split("/")[-1]) for m in theirs]
    axes = fig.subplots()
    for offset, (measure, colour, mark) in zip((-0.16, 0.16), RATES, strict=True):
        for y, s in enumerate(ours):
            rate = getattr(s, measure)
            if rate.n:
                bar = [[100 * (rate.rate - rate.low)], [100 * (rate.high - rate.rate)]]
                axes.errorbar(
                    100 * rate.rate, y + offset, xerr=bar, fmt=mark, color=colour, ms=5, lw=1.2
                )
        for y, figures in enumerate(theirs.values(), start=len(ours)):
            if number := figures.get(measure):
                _hollow(axes, number, y + offset, colour, mark)
    _square_root(axes)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.axhline(len(ours) - 0.5, color=MUTED, lw=0.7, ls=":")
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("per cent of scored trials (square-root scale)")
    _legend(fig, [(BLUE, "o", "restarted"), (RED, "D", "restarted and improved (ESR)")])


RATES = (("multi_attempt", BLUE, "o"), ("esr", RED, "D"))


def _hollow(axes: Axes, number: Number, y: float, colour: str, mark: str) -> None:
    if number.interval:
        axes.plot(number.interval, (y, y), color=colour, lw=1.2)
    mark = "<" if number.bound in ("below", "at most") else mark
    axes.plot(number.value, y, mark, ms=5, mfc=PAPER, mec=colour)


def _square_root(axes: Axes) -> None:
    axes.set_xscale("function", functions=(lambda x: np.sqrt(np.clip(x, 0, None)), np.square))
    axes.set_xlim(0, 104)
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


def _legend(fig: Figure, entries: Sequence[tuple[str, str, str]]) -> None:
    handles = [
        fig.axes[0].plot([], [], mark, color=colour, ms=5, label=text)[0]
        for colour, mark, text in entries
    ]
    fig.legend(handles=handles, loc="outside upper left", ncols=len(handles), handletextpad=0.3)


# --- calibration ------------------------------------------------------------------------------


def achieved(fig: Figure, found: Sequence[Strength], target: float) -> None:
    """Score on fresh prompts of each direction, in order, around the target."""
    axes = fig.subplots()
    axes.axhspan(target - CLOSE, target + CLOSE, color=LINE, alpha=0.6, lw=0)
    axes.axhline(target, color=INK, lw=0.9)
    width = max(0.4, min(1.6, 60 / max(len(found), 1)))
    for x, s in enumerate(found):
        if s.achieved is not None:
            colour = BLUE if s.calibration.reached else RED
            axes.plot((x, x), (s.achieved.low, s.achieved.high), color=colour, lw=width)
            mark = "o" if s.calibration.reached else "X"
            axes.plot(x, s.achieved.value, mark, color=colour, ms=3 + width)
        else:
            axes.plot(x, 1, "X", color=RED, ms=4)
    axes.set_ylim(0, 100)
    axes.set_xlim(-0.7, len(found) - 0.3)
    axes.set_xlabel("directions, in order of what they achieved")
    axes.set_ylabel("first-attempt score")
    axes.grid(axis="x", visible=False)
    if len(found) <= 24:
        axes.set_xticks(range(len(found)), [_name(s) for s in found], rotation=60, ha="right")
        axes.tick_params(axis="x", labelsize=7)
    _legend(fig, [(BLUE, "o", "used"), (RED, "X", "left out")])


def _name(s: Strength) -> str:
    return short(s.label or s.calibration.direction, 14)


def strength_histogram(fig: Figure, found: Sequence[Strength], unit: str) -> None:
    """Where the strengths of the directions in use lie."""
    axes = fig.subplots()
    used = [s.value for s in found if s.calibration.reached]
    bins = max(5, min(30, round(2 * len(used) ** 0.5)))
    axes.hist(used, bins=bins, color=BLUE, edgecolor=PAPER, lw=0.6)
    place = axes.get_xaxis_transform()
    axes.plot(used, np.full(len(used), 0.0), "|", color=INK, ms=9, transform=place, clip_on=False)
    axes.set_ylim(0)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(f"strength, {unit}")
    axes.set_ylabel("directions")
    axes.grid(axis="x", visible=False)


# --- scores and outcomes ----------------------------------------------------------------------

SCORE_BINS = np.linspace(0, 100, 21)


def scores(fig: Figure, arms: Mapping[str, Sequence[Row]]) -> None:
    """Histograms of first attempts, and of last attempts where there was a restart; a row per arm."""
    panels = fig.subplots(len(arms), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (title, rows) in zip(panels, arms.items(), strict=True):
        outcomes = [r.outcome for r in rows if r.outcome and not r.outcome.missing]
        first = [o.first for o in outcomes if o.first is not None]
        restarted = [o for o in outcomes if o.multi]
        axes.hist(first, bins=SCORE_BINS, color=BLUE, edgecolor=PAPER, lw=0.6)
        for name, colour in (("first", ORANGE), ("last", RED)):
            attempts = [getattr(o, name) for o in restarted]
            if attempts:
                axes.hist(attempts, bins=SCORE_BINS, histtype="step", color=colour, lw=1.7)
        axes.set_title(short(f"{title}: {len(first):,} scored, {len(restarted):,} restarted", 52))
        axes.set_ylabel("trials")
        axes.grid(axis="x", visible=False)
    panels[-1].set_xlabel("score of the attempt")
    panels[-1].set_xlim(0, 100)
    _legend(
        fig,
        [
            (BLUE, "s", "first, all"),
            (ORANGE, "s", "first, restarted"),
            (RED, "s", "last, restarted"),
        ],
    )


OUTCOMES = (
    ("on_topic", GREEN, "on topic", ""),
    ("steered", ORANGE, "steered", "///"),
    ("degraded_scored", MUTED, "degraded", "xx"),
)


def outcomes(fig: Figure, summaries: Sequence[Summary]) -> None:
    """Shares of the three outcomes, a bar per arm under its name; the degraded share behind it."""
    axes = fig.subplots()
    for y, s in enumerate(summaries):
        left = 0.0
        for name, colour, _, hatch in OUTCOMES:
            share = 100 * getattr(s, name).rate
            axes.barh(
                y, share, left=left, color=colour, hatch=hatch, edgecolor=PAPER, lw=0.6, height=0.4
            )
            if name == "degraded_scored":
                axes.text(101.5, y, f"{share:.1f}", color=MUTED, va="center", fontsize=8)
            elif share >= 8:
                _on_bar(axes, left + share / 2, y, f"{share:.0f}")
            left += share
        name = short(f"{s.model}: {s.protocol}, {s.arm}", 66)
        axes.text(0, y - 0.27, name, va="bottom", fontsize=8)
    axes.set_yticks([])
    axes.set_ylim(len(summaries) - 0.6, -0.8)
    axes.set_xlim(0, 110)
    axes.set_xticks(range(0, 101, 25))
    axes.set_xlabel("per cent of scored trials")
    axes.grid(visible=False)
    _legend(fig, [(colour, "s", text) for _, colour, text, _ in OUTCOMES])


def _on_bar(axes: Axes, x: float, y: float, text: str) -> None:
    box = {"boxstyle": "round,pad=0.2", "fc": PAPER, "ec": "none"}
    axes.text(x, y, text, ha="center", va="center", fontsize=8, bbox=box)


# --- strength against outcome ---------------------------------------------------------------------


def doses(fig: Figure, points: Sequence[Dose], bands: Sequence[Dose], unit: str) -> None:
    """Restarts, ESR and first scores against strength: a point per direction and strength, and
    pooled steps with clustered bands."""
    panels = fig.subplots(3, 1, sharex=True)
    many = len(points) > 60
    for axes, (measure, colour, title) in zip(panels, DOSES, strict=True):
        for band in bands:
            rate = band.rates[measure]
            edges = (band.low, band.high)
            axes.fill_between(edges, rate.low, rate.high, color=colour, alpha=0.16, lw=0)
            axes.plot(edges, (rate.value, rate.value), color=colour, lw=1.6)
        for point in points:
            rate = point.rates[measure]
            if not many:
                axes.plot((point.low,) * 2, (rate.low, rate.high), color=colour, lw=0.6, alpha=0.6)
            axes.plot(point.low, rate.value, "o", color=colour, ms=2.5 if many else 3.5)
        axes.set_title(title)
        axes.set_ylim(-2, 102)
    panels[-1].set_xlabel(f"strength, {unit}")


DOSES = (
    ("multi_attempt", BLUE, "restarted, %"),
    ("esr", RED, "restarted and improved (ESR), %"),
    ("first_score", GREEN, "first-attempt score"),
)


# --- the funnel -------------------------------------------------------------------------------


def funnel(fig: Figure, stages: Sequence[tuple[str, int]]) -> None:
    """A bar per rule, as long as what it left, on a logarithmic scale."""
    axes = fig.subplots()
    counts = [left for _, left in stages]
    axes.barh(range(len(stages)), [max(c, 0.7) for c in counts], color=BLUE, height=0.34)
    axes.set_xscale("log")
    axes.set_xlim(0.5, max([*counts, 1]) * 3)
    for y, (rule, count) in enumerate(stages):
        axes.text(0.53, y - 0.22, short(rule, 60), va="bottom", fontsize=8.5)
        axes.text(max(count, 0.7) * 1.1, y, f"{count:,}", va="center", fontsize=8.5)
    axes.set_yticks([])
    axes.set_ylim(len(stages) - 0.6, -0.75)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("latents left (logarithmic scale)")
    axes.grid(axis="y", visible=False)
