"""Cells (direction, strength, question) again with many fresh seeds: is a cell's rate real, or luck?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from pydantic import Field

from steerback.errors import UserError, nearest
from steerback.protocols.base import Analysis, Cell, Direction, Entry, Inputs, Sheet, trial
from steerback.protocols.bench import Bench
from steerback.protocols.charts import Dots, Series
from steerback.records import Record, Records
from steerback.stats import Mean, cluster_rate, wilson
from steerback.stats.mixture import Mixture, fit, luck_of_the_best, shrunk
from steerback.tomlfile import Table
from steerback.types import Rate, Trial, derive_seed

HOT, OTHER = "restarted before", "drawn at random"
SHOWN = 12
"""Cells of each kind in the tables and the figure."""


class Settings(Table):
    cells: list[str] = Field(
        default=[],
        description='Cells to try again, each "LATENT: QUESTION"; empty: cells that restarted in esr.',
    )
    hot: int = Field(
        default=24, ge=1, description="Cells that restarted in esr, at most, drawn at random."
    )
    others: int = Field(
        default=24, ge=0, description="Cells drawn at random from all of esr, to compare with."
    )
    seeds: int = Field(default=30, ge=2, description="Fresh seeds per cell.")


class Hotspot:
    name = "hotspot"
    asks = "Does a cell that restarted once restart again, or was it luck?"
    settings: type[Table] = Settings
    needs: tuple[str, ...] = ("esr",)

    def before(self, bench: Bench, inputs: Inputs, settings: Table) -> Any:
        """Each cell once: its kind, direction, question, and what esr saw of it."""
        own = cast("Settings", settings)
        stored = list(bench.records.of("esr"))
        rng = np.random.default_rng(derive_seed(inputs.seed, self.name))
        chosen = _named(inputs, own.cells) or _drawn(
            [r for r in stored if r.outcome.multi], own.hot, rng
        )
        taken = {tuple(c) for c in chosen}
        rest = [r for r in stored if r.outcome.multi is not None and _place(r) not in taken]
        others = _drawn(rest, own.others, rng)
        return [_cell(kind, c, stored) for kind, cs in ((HOT, chosen), (OTHER, others)) for c in cs]

    def plan(self, inputs: Inputs, settings: Table) -> list[Trial]:
        own = cast("Settings", settings)
        directions = {d.id: d for d in inputs.directions}
        return [
            _trial(inputs, directions[c["direction"]], c, n)
            for c in inputs.found[self.name]
            for n in range(own.seeds)
        ]

    def analyse(self, records: Records) -> Analysis:
        found = records.finding(self.name)[1]
        if found is None:
            return Analysis()
        counts = _counts(records, found)
        if not any(n for _, n in counts):
            return Analysis()
        mixture = fit(*zip(*counts, strict=True))
        return Analysis(
            records.summaries(self.name),
            sheets=(_luck(found, counts), _cells(found, counts, mixture)),
            charts=(_figure(found, counts, mixture),),
        )


# --- cells -----------------------------------------------------------------------------------


def _place(r: Record) -> tuple[str, str]:
    return r.trial.cluster, r.trial.question


def _drawn(records: Sequence[Record], most: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    places = sorted({_place(r) for r in records})
    return [places[i] for i in sorted(rng.permutation(len(places))[:most])]


def _named(inputs: Inputs, cells: Sequence[str]) -> list[tuple[str, str]]:
    """Directions and questions of cells that the settings name."""
    known = {str(d.index): d for d in inputs.directions}
    found = []
    for cell in cells:
        latent, _, question = (part.strip() for part in cell.partition(":"))
        if latent not in known or not question:
            raise UserError(
                f'hotspot: {cell!r} is no cell of this run; write "LATENT: QUESTION" with a latent that '
                f"is steered with ({nearest(latent, known)})"
            )
        found.append((known[latent].id, question))
    return found


def _cell(kind: str, place: tuple[str, str], stored: Sequence[Record]) -> dict[str, Any]:
    outcomes = [r.outcome.multi for r in stored if _place(r) == place]
    known = [m for m in outcomes if m is not None]
    direction, question = place
    return {
        "kind": kind,
        "direction": direction,
        "question": question,
        "seen": [sum(known), len(known)],
    }


def _trial(inputs: Inputs, direction: Direction, cell: Any, n: int) -> Trial:
    seed = derive_seed(inputs.seed, "hotspot", direction.id, cell["question"], n)
    place = Cell(direction, cell["question"], seed)
    return trial("hotspot", cell["kind"], inputs, place, [direction.add()])


# --- tables ----------------------------------------------------------------------------------


def _counts(records: Records, found: Sequence[Any]) -> list[tuple[int, int]]:
    """(restarts, scored trials) of each cell."""
    outcomes: dict[tuple[str, str, str], list[bool]] = {}
    for r in records.of("hotspot"):
        if r.outcome.multi is not None:
            outcomes.setdefault((r.trial.arm, *_place(r)), []).append(r.outcome.multi)
    keys = [(c["kind"], c["direction"], c["question"]) for c in found]
    return [(sum(outcomes.get(k, [])), len(outcomes.get(k, []))) for k in keys]


def _luck(found: Sequence[Any], counts: Sequence[tuple[int, int]]) -> Sheet:
    """Each kind of cell: its rate before and on fresh seeds, how cells differ, and the best one."""
    rows: list[tuple[Entry, ...]] = []
    for kind in (HOT, OTHER):
        own = [n for n, c in enumerate(found) if c["kind"] == kind and counts[n][1]]
        if own:
            k, n = zip(*(counts[i] for i in own), strict=True)
            mixture = fit(k, n)
            best = max(own, key=lambda i: counts[i][0] / counts[i][1])
            rows.append(
                (
                    kind,
                    len(own),
                    _rate(*map(sum, zip(*(found[i]["seen"] for i in own), strict=True))),
                    _clustered(found, counts, own),
                    mixture.rho,
                    mixture.p,
                    _rate(*counts[best]),
                    _shrunk(*counts[best], mixture),
                    luck_of_the_best(k, n),
                )
            )
    columns = ("cells", "n", "rate in esr", "rate on fresh seeds", "rho", "p, one rate for all")
    columns_best = ("best cell", "best cell, shrunk", "p, best by luck")
    notes = (
        "rate in esr of cells that were chosen because they restarted is 1 or near it by that choice",
        "rho: correlation of two trials of a cell (beta-binomial mixture); 0: all cells have one rate",
        "p, best by luck: that the best of so many cells of one rate does as well",
    )
    return Sheet("Real, or luck", (*columns, *columns_best), tuple(rows), notes)


def _rate(k: int, n: int) -> Rate | None:
    return Rate(k, n, n, 0, *wilson(k, n), "Wilson, trials as independent") if n else None


def _clustered(found: Sequence[Any], counts: Sequence[tuple[int, int]], own: Sequence[int]) -> Rate:
    """The rate of these cells together, whole directions resampled."""
    events, clusters = [], []
    for i in own:
        k, n = counts[i]
        events += [True] * k + [False] * (n - k)
        clusters += [found[i]["direction"]] * n
    return cluster_rate(events, clusters)


def _shrunk(k: int, n: int, mixture: Mixture) -> Mean:
    found = shrunk(k, n, mixture)
    method = "posterior under the fitted beta-binomial mixture"
    return Mean(found.rate, found.low, found.high, n, 1, method=method)


def _top(found: Sequence[Any], counts: Sequence[tuple[int, int]]) -> list[int]:
    """The best cells of each kind, best first."""
    order = sorted(
        (i for i, (_, n) in enumerate(counts) if n), key=lambda i: -counts[i][0] / counts[i][1]
    )
    return [
        i for kind in (HOT, OTHER) for i in [j for j in order if found[j]["kind"] == kind][:SHOWN]
    ]


def _cells(found: Sequence[Any], counts: Sequence[tuple[int, int]], mixture: Mixture) -> Sheet:
    rows = tuple(
        (
            found[i]["kind"],
            found[i]["direction"],
            found[i]["question"],
            "{} of {}".format(*found[i]["seen"]),
            _rate(*counts[i]),
            _shrunk(*counts[i], mixture),
        )
        for i in _top(found, counts)
    )
    columns = ("cell", "direction", "question", "in esr", "on fresh seeds", "shrunk")
    notes = (
        f"the best {SHOWN} of each kind; shrunk: towards what all {len(found)} cells do "
        f"(mean {mixture.mean:.3f}, rho {mixture.rho:.3f}), 95% of the posterior",
    )
    return Sheet("Cells on fresh seeds", columns, rows, notes)


def _figure(found: Sequence[Any], counts: Sequence[tuple[int, int]], mixture: Mixture) -> Dots:
    top = _top(found, counts)
    return Dots(
        "Cells on fresh seeds",
        f"Restart rate of the best {SHOWN} cells that restarted before, then of those drawn at random: "
        "as counted (Wilson), and shrunk towards what all cells do (95% of the posterior). Dotted: "
        "their mean.",
        "share of trials that restarted",
        tuple(f"{found[i]['direction']} {found[i]['question']}" for i in top),
        (
            Series("as counted", tuple(_rate(*counts[i]) for i in top)),
            Series("shrunk", tuple(_shrunk(*counts[i], mixture) for i in top)),
        ),
        mark=mixture.mean,
    )


PROTOCOL = Hotspot()
