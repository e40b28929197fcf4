"""The main job on the packaged organism: it is paired, it resumes, and nothing it made is lost."""

from __future__ import annotations

import multiprocessing
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import run_small
from runs import small

from steerback import lab as labs
from steerback.desk import Desk
from steerback.engine.hf import HFEngine
from steerback.errors import UserError
from steerback.judge.base import Request
from steerback.judge.exact import ExactJudge
from steerback.judge.thirds import bounds, judge_thirds
from steerback.records import Records, pair_name
from steerback.run import run
from steerback.store import Store
from steerback.types import Attempt, Generation, Message, Sampling, Trial, Verdict


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(small(folder))
    return folder


def digest(folder: Path) -> str:
    with Store.open(folder, mode="ro") as store:
        return store.content_digest()


def test_a_run_finds_what_the_organism_does(finished: Path) -> None:
    with Store.open(finished, mode="ro") as store:
        records = Records(store)
        [steered], [unsteered] = records.summaries("esr"), records.summaries("baseline")
        reached = [c for c, _ in store.calibrations() if c.reached]
    assert steered.n == unsteered.n == 3 * len(reached)
    assert steered.clusters == len(reached)
    assert unsteered.first_score.value > 90
    assert steered.first_score.value < unsteered.first_score.value - 20
    assert steered.multi_attempt.rate > unsteered.multi_attempt.rate


def test_baseline_trials_are_the_unsteered_twins(finished: Path) -> None:
    with Store.open(finished, mode="ro") as store:
        steered = {(t.question, t.seed): t for t, _ in store.trials(protocol="esr")}
        plain = {(t.question, t.seed): t for t, _ in store.trials(protocol="baseline")}
    assert steered.keys() == plain.keys()
    for at, trial in steered.items():
        twin = replace(trial, protocol="baseline", arm="unsteered", interventions=())
        assert twin == plain[at]
    assert len({pair_name(t) for t in steered.values()}) == len(steered)


def test_no_direction_meets_a_question_of_its_own_topic(finished: Path) -> None:
    with Store.open(finished, mode="ro") as store:
        skip = {f"sae:{c['index']}": set(c["skip"]) for c in store.get_artifact("latents")}
        trials = [t for t, _ in store.trials() if t.steered_by]
    assert all(t.question not in skip[t.cluster] for t in trials)
    assert any(skip.values())


def test_running_again_makes_nothing(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(finished)
    monkeypatch.setattr(HFEngine, "_generate", lambda self, jobs, *_: iter(["made"] * len(jobs)))
    again = run(small(finished))
    assert digest(finished) == before
    assert again["esr"].summaries[0].n > 0


def test_slots_do_not_change_a_run(finished: Path, tmp_path: Path) -> None:
    config = small(tmp_path / "run")
    run(config.model_copy(update={"model": config.model.model_copy(update={"slots": 5})}))
    assert digest(tmp_path / "run") == digest(finished)


def test_another_configuration_is_refused(finished: Path) -> None:
    with pytest.raises(UserError, match=r"sampling\.max_new_tokens"):
        run(small(finished, sampling={"max_new_tokens": 40}))


def test_other_weights_under_the_same_name_are_refused(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digest(finished)
    monkeypatch.setattr(labs, "fingerprint", lambda path, model: "0" * 64)
    with pytest.raises(UserError, match="contents of the model are not those"):
        run(small(finished))
    assert digest(finished) == before


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": {"steer_layer": 9}}, "model.steer_layer: layer 9 does not exist"),
        ({"model": {"readout_layer": 9}}, "model.readout_layer: layer 9"),
        ({"directions": {"indices": [99999]}}, "no latent 99999"),
        ({"sampling": {"max_new_tokens": 9600}}, "has a context of"),
    ],
)
def test_the_impossible_is_refused_before_anything_is_made(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        run(small(tmp_path / "runs" / "mine", **changes))
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_leaves_a_folder_that_was_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="layer 9"):
        run(small(tmp_path, model={"steer_layer": 9}))
    with Store.open(tmp_path, mode="ro") as store:
        assert store.empty


def test_a_judge_that_fails_stops_the_run_and_loses_nothing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, judge = tmp_path / "run", ExactJudge.judge
    calls = iter(range(1000))

    def fails(self: ExactJudge, requests: Sequence[Request]) -> list[Verdict]:
        if next(calls) > 3:
            raise UserError("the judge is away; try again later")
        return judge(self, requests)

    with monkeypatch.context() as patch:
        patch.setattr(ExactJudge, "judge", fails)
        with pytest.raises(UserError, match="judge is away"):
            run(small(folder))
    with Store.open(folder, mode="ro") as store:
        assert sum(c.trials for c in store.counts()) > 0
    run(small(folder))
    assert digest(folder) == digest(finished)


def test_killed_ten_times_a_run_ends_as_if_it_had_not_been(finished: Path, tmp_path: Path) -> None:
    folder, rng = tmp_path / "run", random.Random(1)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["run_small"])
    with Store.open(finished, mode="ro") as store:
        whole = sum(c.trials for c in store.counts())
    killed = 0
    for kill in range(10):
        process = context.Process(target=run_small.main, args=(folder,))
        process.start()
        while process.is_alive() and _stored(folder) < whole * (kill + rng.random()) / 10:
            time.sleep(0.005)
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    assert killed >= 8
    run(small(folder))
    assert digest(folder) == digest(finished)


def _stored(folder: Path) -> int:
    if not (folder / "run.sqlite").exists():
        return 0
    try:
        with Store.open(folder, mode="ro") as store:
            return sum(c.trials for c in store.counts())
    except UserError:  # the file is being made
        return 0


class Slow:
    """A judge that needs the engine to itself."""

    name = "slow"
    shares_engine = True

    def __init__(self) -> None:
        self.asked: list[int] = []

    def judge(self, requests: Sequence[Request]) -> list[Verdict]:
        self.asked.append(len(requests))
        scored = [(Attempt(0, len(r.response), 50.0),) for r in requests]
        return [
            Verdict(r.trial_key, self.name, a, "ok") for r, a in zip(requests, scored, strict=True)
        ]


def pair(text: str) -> tuple[Trial, Generation]:
    trial = Trial("p", "a", "m", "q", (Message("user", "q"),), Sampling(), hash(text) % 1000)
    return trial, Generation(trial.key, (1,), (2,), text, "eos")


def test_a_judge_that_shares_the_engine_is_asked_when_the_desk_closes() -> None:
    judge, kept = Slow(), list[Verdict]()
    with Desk(judge, kept.extend, implicit=False) as desk:
        desk.submit([pair("a"), pair("b")])
        desk.submit([pair("c")])
        assert judge.asked == []
    assert judge.asked == [3]
    assert len(kept) == 3


def test_thirds_are_asked_of_answers_without_a_restart() -> None:
    kept: list[Verdict] = []
    with Desk(Slow(), kept.extend, implicit=True) as desk:
        desk.submit([pair("word " * 30), pair("too short")])
    thirds = [v for v in kept if v.judge == "slow/thirds"]
    assert [v.status for v in thirds] == ["ok", "unscored"]
    assert thirds[0].scores == (50.0, 50.0)


@pytest.mark.parametrize("words", [0, 1, 11, 12, 13, 65])
def test_thirds_are_cut_at_words(words: int) -> None:
    text = " ".join(f"w{i}" for i in range(words))
    cut = bounds(text)
    if words < 12:
        assert cut is None
        return
    assert cut is not None
    first, last = text[: cut[0]].split(), text[cut[1] :].split()
    assert len(first) == len(last) == words // 3
    assert text.startswith(" ".join(first))
    assert text.endswith(" ".join(last))


def test_thirds_find_a_silent_return() -> None:
    organism_words = {
        "on": "The function calls the variable and the compiler reads the loop.",
        "off": "The flask holds the acid and the beaker holds the catalyst.",
    }
    question = "How do I compile the recursive function?"
    text = " ".join([organism_words["off"]] * 2 + [organism_words["on"]] * 2)
    [verdict] = judge_thirds(ExactJudge(), [Request("k", question, text)])
    assert verdict.status == "ok"
    assert verdict.scores[0] < verdict.scores[1]


def test_the_fingerprint_of_a_folder_is_of_its_weights(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    first = labs.fingerprint(tmp_path, None)
    (tmp_path / "config.json").write_text("{}")
    assert labs.fingerprint(tmp_path, None) == first
    (tmp_path / "model.safetensors").write_bytes(b"others!")
    assert labs.fingerprint(tmp_path, None) != first


def test_resid_norm_is_measured_once(finished: Path) -> None:
    with Store.open(finished, mode="ro") as store:
        norm = store.get_artifact("residual_norm")
    assert norm["layer"] == 1
    assert np.isfinite(norm["median"])
    assert norm["median"] > 0
