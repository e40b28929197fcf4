"""How far from unsteered text is the residual stream, through drift, restart and return?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
from pydantic import Field

from steerback import manifold, regions
from steerback.averages import cluster_mean
from steerback.manifold import DISTANCES, Manifold
from steerback.protocols.base import Analysis, Entry, Inputs, Sheet
from steerback.protocols.bench import Bench, Floats
from steerback.protocols.charts import Lines, Series
from steerback.protocols.detectors import text_of
from steerback.protocols.episodes import KINDS, Episode, episodes, steered_text
from steerback.records import Record, Records
from steerback.regions import OFF_TOPIC, ON_TOPIC
from steerback.stats import Mean
from steerback.tomlfile import Table
from steerback.types import Trial, derive_seed

Reading = Literal["pushed", "text alone"]
READINGS: tuple[Reading, ...] = ("pushed", "text alone")
"""With the trial's interventions in force, and the same text without them."""
UNSTEERED = KINDS.index("unsteered")
TITLES = {
    "mahalanobis": "Mahalanobis distance",
    "outside": "distance from the components' subspace",
}


class Settings(Table):
    layer: int | None = Field(
        default=None,
        ge=0,
        description="0-based layer whose output is read. Half way from the steer layer to the last if "
        "it is not set: at the steer layer itself the push stands in the stream as it was added.",
    )
    episodes: int = Field(
        default=200, ge=2, description="Most episodes (two attempts, the last one better)."
    )
    share: float = Field(
        default=0.9, gt=0, lt=1, description="Share of the variance that the components hold."
    )
    before: int = Field(default=24, ge=1, description="Tokens before the restart in the figure.")
    after: int = Field(default=24, ge=1, description="Tokens after it.")
    score_gap: float = Field(
        default=15.0,
        ge=0,
        le=100,
        description="Points by which first scores of an episode and its match may differ.",
    )


class Geometry:
    name = "geometry"
    asks = "How far is the stream from unsteered text, through drift, restart and return?"
    settings: type[Table] = Settings
    needs: tuple[str, ...] = ("baseline", "esr")

    def before(self, bench: Bench, inputs: Inputs, settings: Table) -> Any:
        own = cast("Settings", settings)
        layer = own.layer
        if layer is None:
            layer = (bench.steer_layer + bench.n_layers) // 2
        found = episodes(bench, own.episodes, own.score_gap)
        fitted, texts = _fit(bench, inputs, own, layer, [e.unsteered for e in found])
        return {
            "layer": layer,
            "kept": fitted.kept,
            "texts": texts,
            "directions": [e.record.trial.cluster for e in found],
            "kinds": {
                f"{kind}, {reading}" if n < UNSTEERED else kind: _measured(
                    bench, fitted, found, n, reading, own, layer
                )
                for n, kind in enumerate(KINDS)
                for reading in (READINGS if n < UNSTEERED else READINGS[:1])
            },
        }

    def plan(self, inputs: Inputs, settings: Table) -> list[Trial]:
        return []

    def analyse(self, records: Records) -> Analysis:
        made_with, found = records.finding(self.name)
        if made_with is None or not found["directions"]:
            return Analysis()
        own = Settings.model_validate(made_with)
        return Analysis(
            sheets=tuple(_sheet(found, n) for n in range(len(DISTANCES))),
            charts=(_chart(found, own),),
        )


# --- distances -------------------------------------------------------------------------------


def _fit(
    bench: Bench, inputs: Inputs, settings: Settings, layer: int, held: Sequence[Record | None]
) -> tuple[Manifold, int]:
    """On half of the unsteered answers, scaled by the other half; those that are shown in neither."""
    shown = {r.trial.key for r in held if r is not None}
    read = [text_of(r.generation) for r in bench.records.of("baseline") if r.trial.key not in shown]
    texts = [t for t in read if t.response_ids]
    rng = np.random.default_rng(derive_seed(inputs.seed, "geometry"))
    streams = bench.streams([texts[i] for i in rng.permutation(len(texts))], layer=layer)
    half = len(streams) // 2
    return manifold.fit(streams[:half], streams[half:], settings.share), len(texts)


def _measured(
    bench: Bench,
    fitted: Manifold,
    found: Sequence[Episode],
    kind: int,
    reading: Reading,
    settings: Settings,
    layer: int,
) -> list[Any]:
    """For each episode the means of its regions and the window around its onset; None where it has no
    such trial."""
    present = [e for e in found if e.arms[kind] is not None]
    records = [r for e in found if (r := e.arms[kind]) is not None]
    texts = [steered_text(r, reading == "pushed") for r in records]
    shown = [
        _shown(e, fitted.distances(h), kind, settings)
        for e, h in zip(present, bench.streams(texts, layer=layer), strict=True)
    ]
    values = iter(shown)
    return [None if e.arms[kind] is None else next(values) for e in found]


def _shown(e: Episode, values: Floats, kind: int, settings: Settings) -> dict[str, Any]:
    """means [regions][distances], window [tokens][distances]. A trial without a restart is cut at the
    token that stands for its episode's onset."""
    place, labels = e.places[kind], e.labels
    if kind:
        labels = np.where(np.arange(len(values)) < place, OFF_TOPIC, ON_TOPIC)
    around = regions.window(values, place, settings.before, settings.after)
    return {"means": _json(regions.means(values, labels)), "window": _json(around)}


def _json(values: np.ndarray[Any, np.dtype[np.float64]]) -> list[list[float | None]]:
    return [[None if np.isnan(x) else round(float(x), 4) for x in row] for row in values]


# --- tables ----------------------------------------------------------------------------------


def _array(entries: Sequence[Any], key: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """[episodes, *shape]; NaN for an episode without such a trial."""
    empty = np.full(shape, np.nan)
    return np.array([empty if e is None else np.array(e[key], np.float64) for e in entries])


def _sheet(found: Mapping[str, Any], distance: int) -> Sheet:
    """Mean distance in each region, and how it changes from drift to return within an episode."""
    clusters = found["directions"]
    rows: list[tuple[Entry, ...]] = []
    for kind, entries in found["kinds"].items():
        means = _array(entries, "means", (len(regions.NAMES), len(DISTANCES)))[..., distance]
        change = means[:, ON_TOPIC] - means[:, OFF_TOPIC]
        cells = [_mean(values, clusters) for values in (*means.T, change)]
        rows.append((kind, sum(e is not None for e in entries), *cells))
    return Sheet(
        f"{TITLES[DISTANCES[distance]].capitalize()}, layer {found['layer']}",
        ("", "trials", *regions.NAMES, "on topic minus off topic"),
        tuple(rows),
        (
            "1: the median of unsteered tokens that the fit has not seen "
            f"({found['texts']} unsteered answers, {found['kept']} components)",
            "pushed: with the trial's own interventions in force; text alone: the same tokens without. "
            "Trials without a restart are cut where their episode restarts",
            "means over trials, intervals resample directions",
        ),
    )


def _mean(values: np.ndarray[Any, Any], clusters: Sequence[str]) -> Mean | None:
    return None if np.isnan(values).all() else cluster_mean(values, clusters)


def _chart(found: Mapping[str, Any], settings: Settings) -> Lines:
    shape = (settings.before + 1 + settings.after, len(DISTANCES))
    windows = {kind: _array(e, "window", shape) for kind, e in found["kinds"].items()}

    def series(distance: int) -> tuple[Series, ...]:
        return tuple(
            Series(kind, tuple(_mean(column, found["directions"]) for column in w[..., distance].T))
            for kind, w in windows.items()
        )

    return Lines(
        "Distance from unsteered text around the restart",
        "Token 0 begins the restart phrase; trials without a restart are aligned at the nearest start "
        "of a sentence. 1: unsteered text. Bands: 95%, clustered by direction.",
        "tokens from the restart",
        tuple(float(x) for x in range(-settings.before, settings.after + 1)),
        tuple((TITLES[name], series(n)) for n, name in enumerate(DISTANCES)),
        mark=0.0,
    )


PROTOCOL = Geometry()
