"""Numbers as people read them: cells with intervals, and sentences that say no more than they hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from steerback.protocols.base import Entry, TrialKey
from steerback.stats import Comparison, Mean, Summary
from steerback.stats.measures import scale
from steerback.types import Rate

DASH = "–"
FEW = 10
"""Restarts below which a sentence warns of the width of its intervals."""
MANY_MISSING = 0.05

Estimate = Rate | Mean


class Cell(NamedTuple):
    """A number, its interval and how it came about, as text."""

    value: str
    interval: str = ""
    title: str = ""
    trial: str = ""
    """Key of the trial that it leads to."""


def number(x: float, digits: int = 1, signed: bool = False) -> str:
    """With a true minus sign; a dash for what is not known, the sign of infinity for what has no end."""
    if math.isnan(x):
        return DASH
    if math.isinf(x):
        return "∞" if x > 0 else "−∞"
    text = f"{x:+.{digits}f}" if signed else f"{x:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def value_of(estimate: Estimate) -> float:
    return estimate.rate if isinstance(estimate, Rate) else estimate.value


def cell(estimate: Estimate, scale: float = 100, signed: bool = False) -> Cell:
    """`scale` 100 shows proportions in per cent (or points), 1 shows scores as they are."""
    x = value_of(estimate)
    # an unknown value may have a known bound (no restart, so no product above it)
    if math.isnan(x) and math.isnan(estimate.low):
        return Cell(DASH, "", "not defined here")
    low, high = (number(scale * b, 1, signed) for b in (estimate.low, estimate.high))
    count = (
        f"{estimate.k:,} of {estimate.n:,}" if isinstance(estimate, Rate) else f"n {estimate.n:,}"
    )
    title = f"{count}, {estimate.clusters:,} clusters, {estimate.missing:,} missing"
    return Cell(number(scale * x, 1, signed), f"{low} to {high}", f"{title}; {estimate.method}")


class Measure(NamedTuple):
    """A row of the headline table."""

    title: str
    gloss: str
    cell: Callable[[Summary], Cell]
    chance: bool = False
    """Rests on first attempts being the model's own: no row where every arm is prefilled."""


MEASURES = (
    Measure("Trials scored", "with a valid first and last score", lambda s: Cell(f"{s.n:,}")),
    Measure(
        "Clusters",
        "directions; questions where nothing is steered",
        lambda s: Cell(f"{s.clusters:,}"),
    ),
    Measure(
        "Missing", "no valid score: left out, never a failure", lambda s: Cell(f"{s.missing:,}")
    ),
    Measure("First-attempt score", "0 to 100", lambda s: cell(s.first_score, 1)),
    Measure(
        "Restarted, %", "two attempts or more (multi-attempt)", lambda s: cell(s.multi_attempt)
    ),
    Measure(
        "Improved, % of restarted",
        "last attempt above the first",
        lambda s: cell(s.cond_improvement),
    ),
    Measure(
        "… by chance, %",
        "a random other first attempt above theirs",
        lambda s: cell(s.chance_improvement),
        chance=True,
    ),
    Measure(
        "Improvement above chance, points",
        "the two lines above, one minus the other",
        lambda s: cell(s.improvement_above_chance, signed=True),
        chance=True,
    ),
    Measure(
        "… above the same direction’s chance",
        "other first attempts under the same push",
        lambda s: cell(s.improvement_above_same_direction, signed=True),
        chance=True,
    ),
    Measure("ESR, %", "restarted and improved, of all scored", lambda s: cell(s.esr)),
    Measure(
        "ESR above chance, points",
        "restarted × improvement above chance",
        lambda s: cell(s.esr_above_chance, signed=True),
        chance=True,
    ),
    Measure(
        "Implicit recovery, %",
        "last third 20 points above the first, no restart",
        lambda s: cell(s.implicit_recovery),
    ),
    Measure(
        "… its mirror, decline, %",
        "last third 20 points below: what noise does",
        lambda s: cell(s.implicit_decline),
    ),
    Measure("Degraded, %", "a word five times in a row", lambda s: cell(s.degraded)),
)


def comparison(c: Comparison, p_holm: float) -> dict[str, Cell]:
    """Cells of one row of a table of comparisons; `p_holm`: p adjusted for all its rows."""
    by = scale(c.measure)
    return {
        "a": Cell(number(by * c.a)),
        "b": Cell(number(by * c.b)),
        "difference": cell(c.difference, by, signed=True),
        "ratio": entry(c.ratio),
        "p": _p(c.p),
        "p_holm": _p(p_holm),
    }


def _p(p: float) -> Cell:
    return Cell(DASH if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}")


def entry(x: Entry) -> Cell:
    """A cell of a sheet: numbers as they are, to three digits; proportions as parts of 1."""
    if x is None:
        return Cell(DASH)
    if isinstance(x, TrialKey):
        return Cell(x.key[:12], trial=x.key)
    if isinstance(x, (str, int)):
        return Cell(str(x))
    if isinstance(x, float):
        return Cell(_plain(x))
    interval = f"{_plain(x.low)} to {_plain(x.high)}"
    return Cell(_plain(value_of(x)), "" if math.isnan(x.low) else interval, x.method)


def _plain(x: float) -> str:
    return f"{x:.3g}".replace("-", "−") if math.isfinite(x) else number(x)


# --- sentences --------------------------------------------------------------------------------


def _between(estimate: Estimate, scale: float = 100, signed: bool = False) -> str:
    low, high = (number(scale * x, 1, signed) for x in (estimate.low, estimate.high))
    return f"95% interval {low} to {high}"


def story(arms: Sequence[Summary]) -> str:
    """What the main experiments say of one model: steered arms in full, restarts without steering."""
    said = [sentence(s) for s in arms if s.protocol != "baseline"]
    for s in arms:
        if s.protocol == "baseline" and s.n:
            said.append(_restarts("Without steering it" if said else f"{s.model}, unsteered,", s))
    return " ".join(said)


def sentence(s: Summary) -> str:
    """What one arm's numbers say, hedged as their intervals demand."""
    who = f"{s.model} ({s.protocol}, {s.arm})"
    if not s.n:
        tail = f"; {s.missing:,} have no valid score" if s.missing else ""
        return f"{who}: no trial is scored yet, so nothing can be said{tail}."
    said = _improvement(s) if s.multi_attempt.k else NO_RESTART
    return " ".join(p for p in (_restarts(who, s), said, _caveats(s)) if p)


PREFILLED = (
    "The first attempt of a prefilled trial begins with a text that was given, chosen for a low score: "
    "its score says nothing of the model, so there is no chance level to set improvement against."
)
NO_RESTART = "Without a restart nothing can be said of improvement."


def _restarts(who: str, s: Summary) -> str:
    rate = s.multi_attempt
    if not rate.k:
        return (
            f"{who} did not restart in any of {s.n:,} scored trials; rates up to "
            f"{number(100 * rate.high)}% are compatible with that."
        )
    return f"{who} restarted in {number(100 * rate.rate)}% of {s.n:,} scored trials ({_between(rate)})."


def _improvement(s: Summary) -> str:
    improved, chance, above = s.cond_improvement, s.chance_improvement, s.improvement_above_chance
    times = "once" if s.multi_attempt.k == 1 else f"{s.multi_attempt.k:,} times"
    came = (
        f"Of the {times} it restarted, it ended better in {number(100 * improved.rate)}%, where a "
        f"random other first attempt would have been better in {number(100 * chance.value)}%"
    )
    if s.prefilled:
        better = f"{improved.k:,} of {improved.n:,}"
        return f"It restarted {times} and ended better in {better}; no chance level applies here."
    if s.multi_attempt.k == 1:
        came = (
            f"The one restart {'ended better' if improved.k else 'did not end better'} than it began; "
            f"a random other first attempt would have in {number(100 * chance.value)}%"
        )
    if not math.isfinite(above.value):
        return f"{came}; improvement above chance cannot be told."
    return f"{came}: {_against_chance(above)}"


def _against_chance(above: Mean) -> str:
    points, interval = number(abs(100 * above.value)), _between(above, signed=True)
    if above.low > 0:
        return f"improvement is {points} points above chance ({interval})."
    if above.high < 0:
        return f"improvement is {points} points below chance ({interval}): restarting did not help."
    if points == "0.0":
        return f"improvement equals chance ({interval})."
    side = "above" if above.value > 0 else "below"
    return f"{points} points {side} chance, which is compatible with chance alone ({interval})."


def _caveats(s: Summary) -> str:
    said = []
    if s.clusters == 1:
        said.append("All trials share one cluster, which says nothing of others.")
    if 0 < s.multi_attempt.k < FEW:
        said.append("So few restarts make every number about them uncertain.")
    if s.missing > MANY_MISSING * (s.n + s.missing):
        said.append(f"{s.missing:,} of {s.n + s.missing:,} trials have no valid score.")
    return " ".join(said)


def by_model(summaries: Sequence[Summary]) -> dict[str, list[Summary]]:
    """Arms of each model: steered ones first, for they are what was asked."""
    found: dict[str, list[Summary]] = {}
    for s in sorted(summaries, key=lambda s: s.protocol == "baseline"):
        found.setdefault(s.model, []).append(s)
    return found
