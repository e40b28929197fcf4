"""A stored trial is made again from its run folder, alone and to the same tokens."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path

import pytest
from report_runs import invented, make_trial, say
from rich.console import Console
from runs import small

from steerback.errors import UserError
from steerback.replay import Replay, replay, show
from steerback.run import run
from steerback.store import Store


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replay") / "run"
    run(small(folder, directions={"count": 2}))
    return folder


@pytest.mark.parametrize("protocol", ["esr", "baseline", "calibration"])
def test_every_protocol_replays_to_the_same_tokens(finished: Path, protocol: str) -> None:
    with Store.open(finished, mode="ro") as store:
        trial, made = next(store.trials(protocol))
    found = replay(finished, trial.key[:12])
    assert found.trial == trial
    assert found.same
    assert found.agree == len(made.token_ids)
    assert found.changed == ()


def test_changed_model_is_told(finished: Path, tmp_path: Path) -> None:
    with Store.open(finished, mode="ro") as store:
        trial, _ = next(store.trials("esr"))
        config = store.config
    with Store.open(finished, config) as store:
        store.note(model_hash="another")
    found = replay(finished, trial.key)
    assert [line.split(",")[0] for line in found.changed] == ["model_hash was another"]


def test_wrong_keys_are_named(tmp_path: Path) -> None:
    folder = invented(tmp_path / "run", 20)
    with pytest.raises(UserError, match="no trial 'xyz'; `steerback report` shows the keys"):
        replay(folder, "xyz")
    with pytest.raises(UserError, match="no trial ''"):
        replay(folder, "")
    with Store.open(folder, mode="ro") as store:
        keys = sorted(t.key for t, _ in store.trials())
    first = next(a[0] for a, b in pairwise(keys) if a[0] == b[0])
    with pytest.raises(UserError, match=f"trials begin with '{first}'; give more of the key"):
        replay(folder, first)


def test_run_without_configuration_cannot_be_replayed(tmp_path: Path) -> None:
    trial = make_trial(1)
    with Store.open(tmp_path / "run") as store:
        store.add([(trial, say(trial, "x"))])
    with pytest.raises(UserError, match="no configuration is stored"):
        replay(tmp_path / "run", trial.key)


def test_difference_is_shown_as_text() -> None:
    trial = make_trial(1)
    stored, made = say(trial, "[bold]stored"), say(trial, "[red]now")
    out = io.StringIO()
    found = Replay(trial, stored, made, ("engine was a, is b",))
    assert not found.same
    show(found, Console(file=out, width=80))
    for words in ("changed since: engine was a", "[bold]stored", "[red]now", "first 3 of 3 tokens"):
        assert words in out.getvalue()
