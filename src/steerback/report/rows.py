"""The numbers of runs for a program: flat rows, each of one kind, unknown numbers null."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from steerback.protocols import detectors
from steerback.records import stored_finding
from steerback.report import significance
from steerback.report.gather import Experiment, Run, gather, told_apart
from steerback.report.numbers import run_folders
from steerback.stats import Mean
from steerback.stats.summary import bounds
from steerback.store import Store
from steerback.types import CALIBRATION

Row = dict[str, Any]


def rows(folders: Sequence[Path], judge: str = "") -> list[Row]:
    """Rows of the runs in or below these folders; `kind` says what each is: arm, comparison, detector
    or calibration (docs/report.md has their keys). Raises UserError as `write_report` does."""
    runs = told_apart([gather(folder, judge) for folder in run_folders(folders)])
    return [
        {"kind": kind, "run": run.name, "folder": str(run.folder), **row}
        for run in runs
        for kind, row in _rows(run)
    ]


def _rows(run: Run) -> Iterator[tuple[str, Row]]:
    for experiment in run.experiments:
        for summary in experiment.analysis.summaries:
            yield "arm", summary.as_json()
    for experiment in run.experiments:
        yield from (("comparison", row) for row in _comparisons(experiment))
    yield from (("detector", row) for row in _detectors(run.folder))
    yield from (("calibration", row) for row in _calibrations(run))


def _comparisons(experiment: Experiment) -> Iterator[Row]:
    compared = experiment.analysis.comparisons
    adjusted = significance.adjusted([c for _, c in compared])
    for (title, c), p_holm in zip(compared, adjusted, strict=True):
        yield {
            "protocol": experiment.name,
            "comparison": title,
            "measure": c.measure,
            "reference": _known(c.a),
            "compared": _known(c.b),
            "difference": _estimate(c.difference),
            "ratio": _estimate(c.ratio),
            "p": _known(c.p),
            "p_holm": _known(p_holm),
            "least_p": significance.least_p(c),
            "alternative": c.alternative,
            "interval_and_p_agree": not significance.disagree(c),
            "pairs": c.pairs,
            "clusters": c.clusters,
            "missing": c.missing,
            "without_twin": list(c.unpaired),
        }


def _detectors(folder: Path) -> Iterator[Row]:
    """The chosen ones, best first: their numbers where they were chosen, and on held-out questions."""
    with Store.open(folder, mode="ro") as store:
        settings, found = stored_finding(store, detectors.PROTOCOL.name)
    if settings is None:
        return
    pools = {"": settings["pool"], "held_out_": detectors.UNSEEN}
    for k in found["chosen"]:
        row: Row = {"protocol": detectors.PROTOCOL.name, "rule": settings["rule"], "index": k}
        row["label"] = found["labels"].get(str(k), "")
        for prefix, pool in pools.items():
            columns: Mapping[str, Sequence[float]] = found["rankings"][pool]
            row |= {f"{prefix}{name}": _known(columns[name][k]) for name in MEASURED}
        yield row


MEASURED = ("auc", "d", "on_matched", "on_mismatched", "mean_matched", "mean_mismatched")


def _calibrations(run: Run) -> Iterator[Row]:
    for s in run.strengths:
        c = s.calibration
        yield {
            "protocol": CALIBRATION,
            "direction": c.direction,
            "label": s.label,
            "strength": _known(c.strength),
            "unit": run.unit,
            "posterior_sd": _known(c.posterior_sd),
            "target": run.target,
            "achieved": None if s.achieved is None else _estimate(s.achieved),
            "n": c.n,
            "reached": c.reached,
            "reason": s.reason,
        }


def _estimate(mean: Mean) -> dict[str, float | None]:
    """`value`, `low`, `high`."""
    found = bounds(mean)
    return {"value": found.pop("rate"), **found}


def _known(x: float) -> float | None:
    return float(x) if math.isfinite(x) else None
