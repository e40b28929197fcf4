"""The protocols that look inside, on the packaged organism, in one run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from runs import small

from steerback import protocols
from steerback.config import RunConfig
from steerback.errors import UserError
from steerback.instruments import Instruments
from steerback.lab import Lab
from steerback.preparation import prepare
from steerback.presets import load
from steerback.protocols.backtracking import Backtracking
from steerback.protocols.episodes import steered_text
from steerback.protocols.hotspot import Hotspot
from steerback.protocols.traces import Traces
from steerback.records import Records
from steerback.run import run
from steerback.store import Store
from steerback.ui import Ui

AMOUNT = {"prompts_per_direction": 12}


def config(folder: Path, **changes: object) -> RunConfig:
    settings = {
        "baseline": AMOUNT,
        "esr": AMOUNT,
        "detectors": {"derangements": 2},
        "traces": {"reading": "generated", "before": 10, "after": 10},
        "hotspot": {"hot": 3, "others": 3, "seeds": 4},
    }
    names = ["baseline", "esr", "traces", "backtracking", "hotspot", "detectors"]
    return small(folder, **{"protocols": names, "settings": settings, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inside") / "run"
    run(config(folder))
    return folder


def test_what_was_recorded_while_generating_is_what_a_second_pass_reads(finished: Path) -> None:
    settings = config(finished)
    with Store.open(finished, settings.model_dump(mode="json")) as store:
        lab = Lab.open(settings, store, Ui())
        prepare(lab)  # finds the strengths in the store
        bench = Instruments(lab)
        latents = store.get_artifact("found/traces")["found"]["latents"]
        moved = 0.0
        for protocol in ("baseline", "esr"):
            records = list(bench.records.of(protocol))[:17]
            recorded = bench.recorded(records, latents)
            again, without = (
                bench.traces(
                    [steered_text(r, on) for r in records],
                    layer=bench.readout_layer,
                    latents=latents,
                )
                for on in (True, False)
            )
            for a, b, c in zip(recorded, again, without, strict=True):
                assert len(a) - len(b) in (0, 1)  # the end token is not read again
                np.testing.assert_allclose(a[: len(b)], b, atol=0.05, rtol=1e-3)
                moved += float(np.abs(b - c).sum()) if protocol == "esr" else 0.0
        assert moved > 1  # the switch does something


def test_the_steered_latent_is_recorded_where_it_is_added(finished: Path) -> None:
    with Store.open(finished, mode="ro") as store:
        for r in Records(store).of("esr"):
            traces = dict(store.traces(protocol="esr"))
            assert r.trial.steered_by is not None
            assert r.trial.steered_by.index in traces[r.trial.key].latents


def test_all_three_have_something_to_say(finished: Path) -> None:
    with Store.open(finished, mode="ro") as store:
        records = Records(store)
        traces = Traces().analyse(records)
        assert traces.sheets[0].title == "Activation by region"
        assert len(traces.charts) == 3
        assert Backtracking().analyse(records).sheets
        hotspot = Hotspot().analyse(records)
        assert {s.arm for s in hotspot.summaries} == {"restarted before", "drawn at random"}
        assert sum(s.n + s.missing for s in hotspot.summaries) == 6 * 4


def test_a_run_that_recorded_nothing_cannot_be_read_as_if_it_had(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    amount = {"baseline": {"prompts_per_direction": 4}, "esr": {"prompts_per_direction": 4}}
    run(config(folder, protocols=["baseline", "esr"], settings=amount))
    late = config(
        folder,
        protocols=["baseline", "esr", "detectors", "traces"],
        settings={**amount, "traces": {"reading": "generated"}, "detectors": {"derangements": 2}},
    )
    with pytest.raises(UserError, match="were generated before anybody asked") as caught:
        run(late)
    assert "\n" not in str(caught.value)


def test_the_example_has_a_thousand_trials_in_every_arm() -> None:
    example = load(Path(__file__).parents[1] / "examples" / "inside.toml", protocols.settings())
    amounts = [
        example.settings[name]["prompts_per_direction"] for name in ("baseline", "esr", "ablation")
    ]
    amounts.append(example.settings["ablation"]["heldout_prompts_per_direction"])
    assert example.directions.count * min(amounts) >= 1000
    assert protocols.with_needs(example.protocols)[0] == "detectors"
    assert set(protocols.with_needs(example.protocols)) == set(example.protocols)
