"""Latents of backtracking: by what their labels say, and by what they do where the model restarts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from steerback import backtracking, detection
from steerback.detection import Choice, Ranking
from steerback.protocols.base import Analysis, Entry, Inputs, Sheet
from steerback.protocols.bench import Bench, Floats
from steerback.protocols.episodes import Episode, episodes, steered_text
from steerback.records import Record, Records
from steerback.tomlfile import Table
from steerback.types import Trial, derive_seed

Window = Literal["before", "at"]
WINDOWS: tuple[Window, ...] = ("before", "at")
TITLES = {"before": "just before a restart", "at": "in the restart itself"}
COLUMNS = (
    "latent",
    "label",
    "AUC",
    "Cohen's d",
    "p (Holm, all latents)",
    "mean without",
    "mean with",
    "AUC, held out",
    "d, held out",
)
FEWEST = 4
"""Pairs on each side of the split below which nothing is ranked."""


class Settings(Table):
    keywords: str = Field(
        default="", description="TOML file with keyword weights; the packaged one if it is empty."
    )
    weight_min: float = Field(
        default=2.0, gt=0, description="Least sum of weights of a label that counts."
    )
    k: int = Field(default=26, ge=1, description="Most latents that are shown of each kind.")
    auc_min: float = Field(
        default=0.9, ge=0.5, le=1, description="Least AUC of a latent chosen by its activation."
    )
    before: int = Field(
        default=6, ge=1, description="Tokens before the restart that are read as one."
    )
    episodes: int = Field(default=200, ge=2, description="Most episodes that are read.")
    score_gap: float = Field(
        default=15.0,
        ge=0,
        le=100,
        description="Points by which first scores of an episode and its match may differ.",
    )

    def choice(self) -> Choice:
        return Choice("separability", self.k, self.auc_min, 0.0)


class Backtracking:
    name = "backtracking"
    asks = "Which latents fire where the model restarts, and are they those whose labels say so?"
    settings: type[Table] = Settings
    needs: tuple[str, ...] = ("esr",)

    def before(self, bench: Bench, inputs: Inputs, settings: Table) -> Any:
        own = cast("Settings", settings)
        found = [e for e in episodes(bench, own.episodes, own.score_gap) if e.quiet]
        search, unseen = _halves(found, inputs.seed)
        labelled = backtracking.by_label(
            bench.labels, backtracking.load(own.keywords or None), own.weight_min
        )
        ranked: dict[str, Any] = {}
        if min(len(search), len(unseen)) >= FEWEST:
            ranked = {w: _ranked(bench, search, unseen, own, w) for w in WINDOWS}
        shown = {k for k, _ in labelled} | {k for r in ranked.values() for k in r["chosen"]}
        return {
            "pairs": [len(search), len(unseen)],
            "directions": [
                len({e.record.trial.cluster for e in half}) for half in (search, unseen)
            ],
            "labelled": labelled,
            "ranked": ranked,
            "labels": {str(k): bench.labels[k] for k in sorted(shown) if k in bench.labels},
            "named": len(bench.labels),
        }

    def plan(self, inputs: Inputs, settings: Table) -> list[Trial]:
        return []

    def analyse(self, records: Records) -> Analysis:
        made_with, found = records.finding(self.name)
        if made_with is None:
            return Analysis()
        settings = Settings.model_validate(made_with)
        rankings = {
            w: tuple(Ranking.from_json(found["ranked"][w][half]) for half in ("search", "unseen"))
            for w in WINDOWS
            if w in found["ranked"]
        }
        by_activation = tuple(_active(found, w, settings, *rankings[w]) for w in rankings)
        return Analysis(sheets=(*by_activation, _labelled(found, rankings, settings)))


# --- readings --------------------------------------------------------------------------------


def _halves(found: Sequence[Episode], seed: int) -> tuple[list[Episode], list[Episode]]:
    """Episodes of a random half of the directions, and of the other half."""
    directions = sorted({e.record.trial.cluster for e in found})
    rng = np.random.default_rng(derive_seed(seed, "backtracking halves"))
    first = {directions[i] for i in rng.permutation(len(directions))[: (len(directions) + 1) // 2]}
    return (
        [e for e in found if e.record.trial.cluster in first],
        [e for e in found if e.record.trial.cluster not in first],
    )


def _ranked(
    bench: Bench,
    search: Sequence[Episode],
    unseen: Sequence[Episode],
    settings: Settings,
    window: Window,
) -> dict[str, Any]:
    rankings = [_rank(bench, half, settings, window) for half in (search, unseen)]
    return {
        "chosen": settings.choice().choose(rankings[0]),
        "search": rankings[0].as_json(),
        "unseen": rankings[1].as_json(),
    }


def _rank(bench: Bench, found: Sequence[Episode], settings: Settings, window: Window) -> Ranking:
    """Restarts in the place of mismatched pairs, matched trials without one in that of matched."""
    quiet, restarted = (
        _readings(
            bench, [(e.arms[arm], e.places[arm], e.correction) for e in found], settings, window
        )
        for arm in (1, 0)
    )
    return detection.rank(quiet, restarted[None])


def _readings(
    bench: Bench,
    places: Sequence[tuple[Record | None, int, int]],
    settings: Settings,
    window: Window,
) -> Floats:
    """[trials, all latents], max over the tokens of the window, steering on."""
    texts = []
    for record, at, length in places:
        assert record is not None, "only matched episodes are read"
        start, end = (at - settings.before, at) if window == "before" else (at, at + length)
        text = steered_text(record, skip=max(start, 0))
        texts.append(text.until(end))
    return bench.read(texts, layer=bench.readout_layer)


# --- tables ----------------------------------------------------------------------------------


def _active(found: Any, window: str, settings: Settings, search: Ranking, unseen: Ranking) -> Sheet:
    """The chosen latents, best first, and how they do on the other directions."""
    chosen: list[int] = found["ranked"][window]["chosen"]
    passes = settings.choice().passes(unseen)
    rows = tuple(
        (k, found["labels"].get(str(k), ""), *_numbers(search, k), *_numbers(unseen, k)[:2])
        for k in chosen
    )
    pairs, directions = found["pairs"], found["directions"]
    notes = (
        f"max over the tokens {TITLES[window]}, against the sentence that starts nearest to the same "
        "place in a trial under the same push, of a like score, that never restarted",
        f"{pairs[0]} pairs of {directions[0]} directions; held out: {pairs[1]} of {directions[1]} other "
        f"directions, where {int(passes[chosen].sum())} of these {len(chosen)} pass again; of all "
        f"{len(unseen)} latents {int(settings.choice().passes(search).sum())} pass here",
    )
    return Sheet(f"Latents that fire {TITLES[window]}", COLUMNS, rows, notes)


def _numbers(ranking: Ranking, k: int) -> tuple[float, ...]:
    row = ranking.row(k)
    return tuple(row[n] for n in ("auc", "d", "p_holm", "mean_matched", "mean_mismatched"))


def _labelled(
    found: Any, rankings: Mapping[Window, tuple[Ranking, ...]], settings: Settings
) -> Sheet:
    """Those whose labels say so, and what they do at restarts."""
    rows: list[tuple[Entry, ...]] = [
        (
            k,
            found["labels"].get(str(k), ""),
            weight,
            *(float(r.auc[k]) for halves in rankings.values() for r in halves),
        )
        for k, weight in found["labelled"][: settings.k]
    ]
    columns = ["latent", "label", "weight"]
    columns += [f"AUC {w}{half}" for w in rankings for half in ("", ", held out")]
    notes = [
        f"{len(found['labelled'])} of {found['named']} labels weigh {settings.weight_min:g} or more"
    ]
    notes += [_agreement(found, w, settings, rankings[w][0]) for w in rankings]
    if not rankings:
        notes.append(
            f"{sum(found['pairs'])} episodes have a match without a restart: too few to rank latents"
        )
    return Sheet(
        "Latents whose labels speak of backtracking", tuple(columns), tuple(rows), tuple(notes)
    )


def _agreement(found: Any, window: Window, settings: Settings, ranking: Ranking) -> str:
    """How many of the labelled pass by activation, beside the share of all latents that do."""
    passes: NDArray[np.bool_] = settings.choice().passes(ranking)
    named = [k for k, _ in found["labelled"]]
    return (
        f"{TITLES[window]}: {int(passes[named].sum())} of these {len(named)} reach the AUC, "
        f"{passes.mean():.2%} of all latents do"
    )


PROTOCOL = Backtracking()
