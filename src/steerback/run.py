"""The main loop: prepare, then for each protocol plan, make what is missing, analyse.

Running the same configuration again is how a run is resumed: everything that is stored is skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from steerback import protocols
from steerback.config import FREE_KEYS, RunConfig
from steerback.engine.base import Watch
from steerback.errors import UserError
from steerback.instruments import Instruments
from steerback.lab import SOURCE, Lab
from steerback.preparation import prepare
from steerback.protocols.base import Analysis, Continued, Inputs, Protocol, Recording, Staged
from steerback.records import Records, stored_finding
from steerback.shortfall import check_directions
from steerback.store import Store
from steerback.tomlfile import Table
from steerback.ui import Ui

Refused = dict[str, str]
"""Protocols that could not run, and why."""


def run(
    config: RunConfig, ui: Ui | None = None, *, refused: Refused | None = None
) -> dict[str, Analysis]:
    """Run every protocol of `config` in its folder; what each found, by name.

    refused: given, a protocol that raises UserError is noted there, with those that need it, and the
    others go on.
    """
    ui = ui or Ui()
    names = protocols.with_needs(config.protocols)
    with Store.open(config.place, config.model_dump(mode="json"), free=FREE_KEYS) as store:
        lab = Lab.open(config, store, ui)
        with closing(lab.engine):
            inputs = prepare(lab)
            check_directions(lab, inputs.directions)
            for protocol in map(protocols.get, names):
                try:
                    _check_needs(protocol, refused or {})
                    inputs = perform(lab, protocol, inputs, names)
                except UserError as error:
                    if refused is None:
                        raise
                    refused[protocol.name] = str(error)
                    ui.say(f"{protocol.name} does not run: {error}")
                store.put_artifact(
                    f"refused/{protocol.name}", (refused or {}).get(protocol.name, "")
                )
        return analyse(store, [n for n in names if n not in (refused or {})])


def perform(lab: Lab, protocol: Protocol, inputs: Inputs, names: Sequence[str]) -> Inputs:
    """Plan one protocol, make what is missing; the inputs with what it found. `names`: of the run."""
    settings = protocol.settings.model_validate(lab.config.settings.get(protocol.name, {}))
    if isinstance(protocol, Staged):
        finding = look(lab, protocol, inputs, settings)
        inputs = replace(inputs, found={**inputs.found, protocol.name: finding})
    trials = protocol.plan(inputs, settings)
    lab.store.put_artifact(f"planned/{protocol.name}", len(trials))
    lab.ui.stage(f"{protocol.name}: {len(trials)} trials")
    watch = recording(lab.config, names, inputs, protocol.name)
    lab.execute(trials, protocol.name, implicit=True, watch=watch)
    if isinstance(protocol, Continued):
        lab.judge_rest(protocol.continued(trials))
    return inputs


def _check_needs(protocol: Protocol, refused: Refused) -> None:
    lacking = [n for n in (protocol.needs if isinstance(protocol, Staged) else ()) if n in refused]
    if lacking:
        raise UserError(f"it needs {' and '.join(lacking)}, which did not run")


def look(lab: Lab, protocol: Staged, inputs: Inputs, settings: Table) -> Any:
    """What the protocol must know before it plans: looked up, or found once and stored."""
    name, wanted = protocol.name, settings.model_dump(mode="json")
    made_with, found = stored_finding(lab.store, name)
    if made_with is not None and made_with != wanted:
        raise UserError(
            f"{lab.store.folder}: {name} was run with other settings; choose another folder, or "
            f"write [settings.{name}] as it was"
        )
    if made_with is None:
        lab.ui.stage(f"{name}: looking")
        found = protocol.before(Instruments(lab), inputs, settings)
        lab.store.put_artifact(f"found/{name}", {"settings": wanted, "found": found})
    return found


def recording(
    config: RunConfig, names: Sequence[str], inputs: Inputs, protocol: str
) -> Watch | None:
    """What the protocols of the run want recorded while the trials of `protocol` are generated."""
    latents: list[int] = []
    for other in map(protocols.get, names):
        if isinstance(other, Recording) and protocol in other.records:
            settings = other.settings.model_validate(config.settings.get(other.name, {}))
            latents += other.recorded(inputs, settings)
    own = tuple(d.index for d in inputs.directions if d.source == SOURCE)
    shared = tuple(dict.fromkeys(latents))
    return Watch(SOURCE, config.readout_layer, shared, own) if shared else None


def analyse(store: Store, names: list[str], judge: str = "") -> dict[str, Analysis]:
    """What the stored trials of these protocols say, as one judge sees them."""
    records = Records(store, judge)
    return {name: protocols.get(name).analyse(records) for name in names}
