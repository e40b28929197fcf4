"""Figures of `traces`, as data."""

from __future__ import annotations

import numpy as np

from steerback import regions
from steerback.averages import cluster_mean
from steerback.protocols.charts import Chart, Dots, Lines, Region, Series
from steerback.protocols.episodes import KINDS
from steerback.protocols.trace_tables import DISTRACTOR, POOLED, RESTARTED, UNITS, Study

SHOWN = 4
"""Detectors drawn by themselves in the figure of one episode."""


def charts(study: Study) -> tuple[Chart, ...]:
    one = _one_episode(study)
    return (*((one,) if one else ()), _around(study), _with_and_without(study))


def _one_episode(study: Study) -> Lines | None:
    example = study.found["example"]
    if example is None:
        return None
    values = study.with_pooled(np.array(example["values"], np.float64))
    entry = study.found["episodes"][example["episode"]]

    def series(k: int) -> Series:
        return Series(study.title(k), tuple(map(float, values[:, k])))

    detectors = range(len(study.names))[study.own][:SHOWN]
    panels = (
        ("detectors, pooled", (series(-1),)),
        ("the first detectors, activation", tuple(series(k) for k in detectors)),
        (f"the steered latent ({entry['direction']}), activation", (series(-2),)),
    )
    return Lines(
        "One episode",
        "The episode in the middle by how far its detectors fall, so nobody chose it "
        f"(`steerback replay` with key {entry['key'][:12]}). Shaded: its regions. Pooled: {UNITS}.",
        "token of the response",
        tuple(map(float, range(len(values)))),
        panels,
        tuple(Region(n, *span) for n, span in zip(regions.NAMES, example["regions"], strict=True)),
    )


def _around(study: Study) -> Lines:
    tokens = study.windows[RESTARTED].shape[1]

    def panel(column: int) -> tuple[Series, ...]:
        return tuple(
            Series(
                kind,
                tuple(study.mean(kind, n, column) for n in range(tokens)),
            )
            for kind in KINDS
        )

    return Lines(
        "Around the restart",
        f"Means over {len(study.directions)} episodes, bands 95%, clustered by direction. Token 0 opens "
        f"the correction; the {study.matched} matched trials without a restart and the unsteered twins "
        f"are aligned at the sentence that starts nearest. Pooled: {UNITS}.",
        "tokens from the restart",
        tuple(float(n - study.before) for n in range(tokens)),
        ((POOLED, panel(-1)), (f"{DISTRACTOR}, activation", panel(-2))),
        mark=0.0,
    )


def _with_and_without(study: Study) -> Dots:
    columns = [len(study.names) - 1, *range(len(study.names))[study.own]]
    values = {kind: study.before_restart(kind) / study.scale for kind in KINDS}
    series = tuple(
        Series(kind, tuple(cluster_mean(values[kind][:, k], study.directions) for k in columns))
        for kind in KINDS
    )
    return Dots(
        "With and without a restart",
        f"Mean over the {study.before} tokens before a restart, over the same tokens of trials under "
        f"the same push that never restarted ({study.matched} matched pairs), and of unsteered twins. A "
        "detector that is as high without a restart does not tell that one is coming.",
        "activation, in units of the highest region mean",
        tuple(study.title(k) for k in columns),
        series,
    )
