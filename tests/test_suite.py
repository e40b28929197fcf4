"""The suite: every protocol there is, in order; one that cannot run stops nothing but what needs it."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import small

from steerback import protocols, suite
from steerback.cli import main
from steerback.errors import UserError
from steerback.organism import names
from steerback.protocols.base import Staged
from steerback.report.gather import gather
from steerback.run import run
from steerback.store import Store

NONE = {"rule": "strict", "derangements": 1}
"""No latent of the organism passes the strict rule."""


def code(arguments: list[str]) -> int | str | None:
    try:
        main(arguments)
    except SystemExit as leave:
        return leave.code
    return 0


def test_it_runs_every_protocol_after_what_it_needs() -> None:
    order = suite.ordered()
    assert sorted(order) == sorted(protocols.registry())
    for n, name in enumerate(order):
        protocol = protocols.get(name)
        if isinstance(protocol, Staged):
            assert set(protocol.needs) <= set(order[:n])
    assert order.index("esr") < order.index("sweep") < order.index("heldout")


def test_a_protocol_that_nobody_named_joins_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    data = {**suite._data(), "groups": {"main": ["heldout"]}}
    monkeypatch.setattr(suite, "_data", lambda: data)
    order = suite.ordered()
    assert order.index("heldout") < order.index("sweep")
    assert sorted(order) == sorted(protocols.registry())


@pytest.mark.parametrize("size", ["full", "quick"])
def test_its_sizes_are_settings_of_protocols_and_its_organisms_are_packaged(
    size: str, tmp_path: Path
) -> None:
    chosen = suite._data()[size]
    assert set(chosen["organisms"]) <= set(names())
    assert set(chosen["settings"]) <= set(protocols.registry())
    config = suite.configuration("organism-resister", tmp_path, chosen)
    for name, table in chosen["settings"].items():
        assert config.settings[name].items() >= table.items()


def test_other_models_keep_their_own_amounts(tmp_path: Path) -> None:
    chosen = suite._data()["full"]
    config = suite.configuration("gemma-2-2b-it", tmp_path, chosen)
    assert config.calibration.unit != "resid"
    with pytest.raises(UserError, match="organism-resistor"):
        suite.configuration("organism-resistor", tmp_path, chosen)


def test_what_cannot_run_is_said_and_the_others_go_on(tmp_path: Path) -> None:
    config = small(
        tmp_path / "run",
        protocols=["esr", "detectors", "ablation", "prefill"],
        settings={"detectors": NONE, "esr": {"prompts_per_direction": 3}},
    )
    with pytest.raises(UserError, match="no latent passes"):
        run(config)
    refused: dict[str, str] = {}
    found = run(config, refused=refused)
    assert list(refused) == ["matching", "ablation"]
    assert refused["ablation"] == "it needs matching, which did not run"
    assert list(found) == ["esr", "detectors", "prefill"]
    assert found["prefill"].summaries
    notes = gather(config.place).notes
    assert any(n.startswith("matching did not run: no latent passes") for n in notes)
    with Store.open(config.place, mode="ro") as store:
        before = store.content_digest()
    run(config, refused={})
    with Store.open(config.place, mode="ro") as store:
        assert store.content_digest() == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "organism-resister", "--quick"], "are for `steerback run suite`"),
        (["run", "suite", "--dry-model"], "the suite takes --model"),
        (["run", "suite", "--model", "organism-resistor"], "organism-resister"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    extra = ["--folder", str(tmp_path)] if arguments[1] == "suite" else []
    assert code([*arguments, *extra]) == 2
    said = capsys.readouterr().err.strip()
    assert says in said
    assert "\n" not in said
