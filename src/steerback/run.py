"""The main loop: prepare, then for each protocol plan, make what is missing, analyse.

Running the same configuration again is how a run is resumed: everything that is stored is skipped.
"""

from __future__ import annotations

from steerback import protocols
from steerback.config import FREE_KEYS, RunConfig
from steerback.lab import Lab
from steerback.preparation import prepare
from steerback.protocols.base import Analysis
from steerback.records import Records
from steerback.store import Store
from steerback.ui import Ui


def run(config: RunConfig, ui: Ui | None = None) -> dict[str, Analysis]:
    """Run every protocol of `config` in its folder; what each found, by name."""
    ui = ui or Ui()
    chosen = [protocols.get(name) for name in config.protocols]
    with Store.open(config.place, config.model_dump(mode="json"), free=FREE_KEYS) as store:
        lab = Lab.open(config, store, ui)
        inputs = prepare(lab)
        for protocol in chosen:
            settings = protocol.settings.model_validate(config.settings.get(protocol.name, {}))
            trials = protocol.plan(inputs, settings)
            store.put_artifact(f"planned/{protocol.name}", len(trials))
            ui.stage(f"{protocol.name}: {len(trials)} trials")
            lab.execute(trials, protocol.name, implicit=True)
        return analyse(store, config.protocols)


def analyse(store: Store, names: list[str], judge: str = "") -> dict[str, Analysis]:
    """What the stored trials of these protocols say, as one judge sees them."""
    records = Records(store, judge)
    return {name: protocols.get(name).analyse(records) for name in names}
