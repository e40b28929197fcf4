"""Every protocol from one command: the main job, a look inside, the controls; one report about all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from steerback import protocols, tomlfile
from steerback.config import RunConfig
from steerback.presets import from_preset, preset
from steerback.protocols.base import Analysis
from steerback.run import Refused, run
from steerback.truths import Answer, answers
from steerback.ui import Ui

ORGANISM = "organism"
"""As a model: the packaged organisms that the suite is run on."""


@dataclass(frozen=True)
class Finished:
    """One model of the suite."""

    config: RunConfig
    found: Mapping[str, Analysis]
    refused: Mapping[str, str]
    """Protocols that could not run on this model, and why."""


def run_suite(
    model: str, folder: Path, *, quick: bool = False, ui: Ui | None = None
) -> list[Finished]:
    """Run every protocol on `model` (a preset, or `organism`: some packaged ones), one folder each.

    A protocol that cannot run on a model, such as a clamp where there are no detectors, is reported and
    the others go on. Run it again to resume.
    """
    size = _data()["quick" if quick else "full"]
    names = [f"organism-{o}" for o in size["organisms"]] if model == ORGANISM else [model]
    finished = []
    for name in names:
        config = configuration(name, folder / name, size)
        refused: Refused = {}
        found = run(config, ui, refused=refused)
        finished.append(Finished(config, found, refused))
    return finished


def configuration(name: str, folder: Path, size: Mapping[str, Any]) -> RunConfig:
    """One model's run. Sizes of the suite are meant for organisms; other models keep their own."""
    preset(name)
    order = ordered()
    values: dict[str, Any] = {"folder": str(folder), "protocols": order}
    if name.startswith("organism-"):
        values |= size["values"]
    values["settings"] = {n: s for n, s in size["settings"].items() if n in order}
    return from_preset(name, protocols.settings(), **values)


def ordered() -> list[str]:
    """Every protocol there is: those of the groups in their order, then the rest by name."""
    known = protocols.registry()
    grouped = [n for group in _data()["groups"].values() for n in group if n in known]
    return protocols.with_needs([*grouped, *(n for n in known if n not in grouped)])


def _data() -> dict[str, Any]:
    return tomlfile.parse((files("steerback") / "data" / "suite.toml").read_text("utf-8"))


def known(finished: Sequence[Finished]) -> list[Answer]:
    """What is known of the organisms among the models, beside what was found."""
    return [
        answer
        for f in finished
        for answer in answers(f.config.model.name.removeprefix(f"{ORGANISM}-"), f.found)
    ]


def said(finished: Sequence[Finished]) -> list[str]:
    """A line for each protocol that could not run."""
    return [
        f"{f.config.name}: {name} did not run: {why}"
        for f in finished
        for name, why in f.refused.items()
    ]
