"""Activations of the detectors through episodes of drift and return, and in trials without a return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from steerback import regions
from steerback.errors import UserError
from steerback.protocols.base import Analysis, Inputs
from steerback.protocols.bench import Bench, Floats
from steerback.protocols.episodes import KINDS, Episode, episodes, steered_text
from steerback.protocols.trace_charts import charts
from steerback.protocols.trace_tables import Study, sheets
from steerback.records import Record, Records
from steerback.regions import NOWHERE, OFF_TOPIC, ON_TOPIC
from steerback.tomlfile import Table
from steerback.types import Trial


class Settings(Table):
    episodes: int = Field(
        default=200, ge=2, description="Most episodes (two attempts, the last one better)."
    )
    reading: Literal["steered", "unsteered", "generated"] = Field(
        default="steered",
        description="steered: each text read again with its interventions, as generation saw it. "
        "unsteered: read again without them. generated: recorded while it was generated.",
    )
    before: int = Field(
        default=24, ge=1, description="Tokens before the restart in aligned traces."
    )
    after: int = Field(default=24, ge=1, description="Tokens after it.")
    score_gap: float = Field(
        default=15.0,
        ge=0,
        le=100,
        description="Points by which first scores of an episode and its match may differ.",
    )
    latents: list[int] = Field(default=[], description="Latents to read besides the detectors.")


class Traces:
    name = "traces"
    asks = "Do the detectors rise before a restart, and would they have without one?"
    settings: type[Table] = Settings
    needs: tuple[str, ...] = ("detectors", "baseline", "esr")
    records: tuple[str, ...] = ("baseline", "esr")

    def recorded(self, inputs: Inputs, settings: Table) -> Sequence[int]:
        own = cast("Settings", settings)
        return _wanted(inputs, own) if own.reading == "generated" else ()

    def before(self, bench: Bench, inputs: Inputs, settings: Table) -> Any:
        own = cast("Settings", settings)
        latents = _wanted(inputs, own)
        found = episodes(bench, own.episodes, own.score_gap)
        readings = {
            kind: _read(bench, [e.arms[n] for e in found], found, own, latents)
            for n, kind in enumerate(KINDS)
        }
        return {
            "latents": latents,
            "detectors": len(inputs.found["detectors"]["chosen"]),
            "labels": {str(k): bench.labels[k] for k in latents if k in bench.labels},
            "episodes": [_entry(e) for e in found],
            "kinds": {
                kind: [
                    None if values is None else _shown(e, values, n, own)
                    for e, values in zip(found, readings[kind], strict=True)
                ]
                for n, kind in enumerate(KINDS)
            },
            "example": _example(found, readings[KINDS[0]]),
        }

    def plan(self, inputs: Inputs, settings: Table) -> list[Trial]:
        return []

    def analyse(self, records: Records) -> Analysis:
        settings, found = records.finding(self.name)
        if settings is None or not found["episodes"]:
            return Analysis()
        study = Study(found, Settings.model_validate(settings).before)
        return Analysis(sheets=sheets(study, settings["reading"]), charts=charts(study))


def _wanted(inputs: Inputs, settings: Settings) -> list[int]:
    """Detectors, then the latents that were named, each once."""
    latents = [*inputs.found["detectors"]["chosen"], *settings.latents]
    if not latents:
        raise UserError(
            "traces: no latent passes the rule for detectors, and [settings.traces] names none; "
            "choose another rule, or write latents = [...]"
        )
    return list(dict.fromkeys(latents))


# --- readings --------------------------------------------------------------------------------


def _read(
    bench: Bench,
    trials: Sequence[Record | None],
    found: Sequence[Episode],
    settings: Settings,
    latents: Sequence[int],
) -> list[Floats | None]:
    """For each episode [tokens, latents + its distractor] of its trial; None where it has none."""
    present = [r for r in trials if r is not None]
    distractors = [_distractor(bench, e) for e in found]
    columns = list(dict.fromkeys([*latents, *distractors]))
    if settings.reading == "generated":
        read = bench.recorded(present, columns)
    else:
        texts = [steered_text(r, settings.reading == "steered") for r in present]
        read = bench.traces(texts, layer=bench.readout_layer, latents=columns)
    values = iter(read)
    return [
        None
        if r is None
        else next(values)[: _length(r), [columns.index(k) for k in (*latents, distractor)]]
        for r, distractor in zip(trials, distractors, strict=True)
    ]


def _distractor(bench: Bench, episode: Episode) -> int:
    """The steered latent; for a vector, the latent whose direction comes nearest to it."""
    add = episode.record.trial.steered_by
    assert add is not None, "the trials of esr add a latent"
    return bench.latent_of(add.source, add.index)


def _length(record: Record) -> int:
    return len(steered_text(record).response_ids)


# --- what is kept ----------------------------------------------------------------------------


def _entry(e: Episode) -> dict[str, Any]:
    return {
        "key": e.record.trial.key,
        "direction": e.record.trial.cluster,
        "onset": e.onset,
        "matches": [None if r is None else r.trial.key for r in (e.quiet, e.unsteered)],
    }


def _shown(e: Episode, values: Floats, kind: int, settings: Settings) -> dict[str, Any]:
    """Means [regions, then whole][latents + distractor]; windows [tokens][latents + distractor].

    A trial without a restart has the regions of its episode's clock: up to the token that stands for the
    onset, and from there on.
    """
    labels, place = e.labels, e.places[kind]
    if kind:
        labels = np.where(np.arange(len(values)) < place, OFF_TOPIC, ON_TOPIC)
    whole = (
        values.mean(axis=0, dtype=np.float64) if len(values) else np.full(values.shape[1], np.nan)
    )
    return {
        "means": _rounded(np.vstack([regions.means(values, labels), whole])),
        "windows": _rounded(regions.window(values, place, settings.before, settings.after)),
    }


def _example(found: Sequence[Episode], readings: Sequence[Floats | None]) -> dict[str, Any] | None:
    """The episode in the middle, by how far the mean of all latents falls from off topic to on topic."""
    falls = []
    for n, (e, values) in enumerate(zip(found, readings, strict=True)):
        if values is not None and (e.labels == ON_TOPIC).any():
            level = regions.means(values[:, :-1], e.labels).mean(axis=1)
            falls.append((level[OFF_TOPIC] - level[ON_TOPIC], n))
    if not falls:
        return None
    _, n = sorted(falls)[len(falls) // 2]
    values = readings[n]
    assert values is not None
    spans = [_stretch(found[n].labels, region) for region in range(len(regions.NAMES))]
    return {"episode": n, "values": _rounded(values.astype(np.float64)), "regions": spans}


def _stretch(labels: NDArray[np.int64], region: int) -> list[int]:
    """Tokens [start, end) of a region; tokens without characters inside it belong to it."""
    at = np.flatnonzero(labels == region)
    later = np.flatnonzero((labels > region) & (labels != NOWHERE))
    return [int(at[0]), int(later[0]) if len(later) else len(labels)]


def _rounded(values: NDArray[np.float64]) -> list[list[float | None]]:
    return [[None if np.isnan(x) else float(f"{x:.5g}") for x in row] for row in values]


PROTOCOL = Traces()
