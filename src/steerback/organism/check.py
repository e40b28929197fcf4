"""Does each organism still show what it was made to show?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerback import organism
from steerback.errors import UserError, nearest
from steerback.organism.corpus import read_data
from steerback.organism.measures import estimate, protocol_of

if TYPE_CHECKING:
    from steerback.protocols.base import Analysis
    from steerback.ui import Ui

MAIN = ("baseline", "esr")
"""The main job: unsteered and steered."""
AUC = 0.75
"""From here on a latent is a detector. Organisms have few latents, and most detectors leak."""
RANDOM_SETS = 5
UNSTEERED = 5
"""Unsteered answers for each steered one: a share of half a per cent is not seen in few."""
SELDOM = {"imitator": 3, "rare": 3}
"""Organisms that restart in a few of a hundred steered answers: times as many questions each."""

MET, OPEN, MISSED, ABSENT = "met", "open", "missed", "not measured"


@dataclass(frozen=True)
class Finding:
    """One number of one organism beside what it is to be."""

    organism: str
    measure: str
    """Its key; see `organism.measures`."""
    value: float
    low: float
    high: float
    """Ends of the 95% interval, clustered by direction."""
    n: int
    least: float
    most: float

    @property
    def met(self) -> bool:
        """Whether the estimate itself lies in the range; the interval says how sure that is."""
        return self.least <= self.value <= self.most

    @property
    def verdict(self) -> str:
        """Met; open: the estimate lies outside the range and its interval reaches into it; missed."""
        if self.met:
            return MET
        if math.isnan(self.value):
            return ABSENT
        return OPEN if self.low <= self.most and self.high >= self.least else MISSED

    def as_json(self) -> dict[str, Any]:
        """What is unknown or has no bound is null."""
        plain = asdict(self) | {"met": self.met, "verdict": self.verdict}
        return {
            k: None if isinstance(v, float) and not math.isfinite(v) else v
            for k, v in plain.items()
        }


def check(
    names: Sequence[str],
    folder: Path,
    *,
    latents: int = 24,
    prompts: int = 20,
    seed: int = 0,
    made: Path | None = None,
    ui: Ui | None = None,
) -> list[Finding]:
    """Run on each organism the protocols of what it must show, stored under `folder`, and compare.

    `prompts`: questions for each latent; more are asked where restarts are few (`SELDOM`) or nothing is
    steered (`UNSTEERED`). `made`: where `train` wrote the organisms; None: the packaged ones. A check
    that was stopped goes on where it was. Raises UserError for an organism of which nothing is expected,
    or that is not there.
    """
    expected = read_data("expected.toml")
    for name in names:
        if name not in expected:
            raise UserError(f"nothing is expected of organism {name!r}; {nearest(name, expected)}")
        organism.folders(name, made)
    return [
        finding
        for name in names
        for finding in compare(
            name,
            measure(
                name,
                folder,
                latents,
                prompts,
                seed,
                ui,
                settings=_settings(
                    prompts * SELDOM.get(name, 1), expected[name], prompts * UNSTEERED
                ),
                made=made,
            ),
            expected[name],
        )
    ]


def measure(
    name: str,
    folder: Path,
    latents: int,
    prompts: int,
    seed: int,
    ui: Ui | None,
    *,
    settings: Mapping[str, Any] | None = None,
    made: Path | None = None,
) -> dict[str, Analysis]:
    """Protocols on one organism, by their settings (default: the main job, unsteered and steered)."""
    from steerback import protocols as known
    from steerback.presets import from_preset
    from steerback.run import run

    settings = settings or _settings(prompts, MAIN, prompts)
    sources: dict[str, Any] = {"directions": {"count": latents}}
    if made is not None:
        sources = _sources(organism.folders(name, made), latents)
    config = from_preset(
        f"organism-{name}",
        known.settings(),
        folder=str(folder / name),
        seed=seed,
        protocols=list(settings),
        settings=settings,
        **sources,
    )
    return run(config, ui)


def _settings(prompts: int, keys: Iterable[str], unsteered: int) -> dict[str, dict[str, Any]]:
    """Of the protocols that find the numbers with these keys, and of those that they rest on.

    `prompts` and `unsteered`: questions per latent, steered and not. One random set is the least that
    an ablation can do with; a median takes more.
    """
    from steerback.protocols import with_needs

    keys = list(keys)
    each = {"prompts_per_direction": prompts}
    sets = RANDOM_SETS if any("random set" in key for key in keys) else 1
    known: dict[str, dict[str, Any]] = {
        "baseline": {"prompts_per_direction": unsteered},
        "esr": each,
        "detectors": {"auc_min": AUC},
        "matching": {"random_sets": sets},
        "ablation": {
            **each,
            "heldout_prompts_per_direction": 0,
            "unsteered_prompts_per_direction": 0,
        },
        "metaprompt": each,
    }
    return {name: known.get(name, {}) for name in with_needs(map(protocol_of, keys))}


def _sources(own: organism.Folders, latents: int) -> dict[str, Any]:
    """The tables of a configuration that say which model, SAE and labels are used."""
    sae = own.sae(own.steer_layer)
    return {
        "directions": {"count": latents, "labels": str(sae / "labels.csv")},
        "model": {"path": str(own.model)},
        "sae": {"spec": str(sae)},
    }


def compare(
    name: str, found: Mapping[str, Analysis], expected: Mapping[str, Sequence[float]]
) -> list[Finding]:
    return [
        Finding(name, key, *estimate(found, key), least, most)
        for key, (least, most) in expected.items()
    ]
