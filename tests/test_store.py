"""The store keeps what it was given, through kills, second writers, full disks and odd text."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from append_run import TOTAL, make_generation, make_pair, make_trial, make_verdict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steerback import codec, table
from steerback.database import FILE, SCHEMA
from steerback.errors import UserError
from steerback.store import Store
from steerback.types import (
    Attempt,
    Calibration,
    Generation,
    Intervention,
    Message,
    Sampling,
    Trace,
    Trial,
    Verdict,
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "run", {"seed": 1}) as opened:
        yield opened


# Mistakes


def mistaken(folder: Path, before: Callable[[Store], object]) -> None:
    """Open a run, do something, and make a mistake."""
    with Store.open(folder) as store:
        before(store)
        raise UserError("wrong")


def test_a_mistake_takes_back_what_opening_made_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="wrong"):
        mistaken(tmp_path / "a" / "b" / "c", lambda store: store.empty)
    assert list(tmp_path.rglob("*")) == [tmp_path / "a"]


def test_a_mistake_leaves_a_run_that_holds_something(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="wrong"):
        mistaken(tmp_path / "run", lambda store: store.put_artifact("found", 1))
    with Store.open(tmp_path / "run", mode="ro") as store:
        assert store.get_artifact("found") == 1


def test_a_mistake_leaves_what_others_put_into_the_folder(tmp_path: Path) -> None:
    answers = tmp_path / "run" / "answers.sqlite"
    with pytest.raises(UserError, match="wrong"):
        mistaken(tmp_path / "run", lambda _: answers.write_text("paid for", "utf-8"))
    assert answers.read_text("utf-8") == "paid for"
    with Store.open(tmp_path / "run", {"seed": 2}) as store:
        assert store.empty


# Round trips

ANY_TEXT = st.text(st.characters(exclude_categories=())) | st.sampled_from(["", "\x00", "\ud800"])
IDS = st.lists(st.integers(-(2**31), 2**31 - 1), max_size=17).map(tuple)
TRIALS = st.builds(
    Trial,
    protocol=st.text(),
    arm=st.text(),
    model=st.text(),
    question=st.text(),
    messages=st.lists(st.builds(Message, st.just("user"), st.text()), max_size=3).map(tuple),
    sampling=st.builds(
        Sampling, temperature=st.floats(0, 9), stop=st.lists(st.text(min_size=1)).map(tuple)
    ),
    seed=st.integers(),
    interventions=st.lists(
        st.builds(
            Intervention,
            st.just("add"),
            st.text(),
            st.integers(0, 2**70),
            st.floats(allow_nan=False, allow_infinity=False),
            st.integers(0, 99),
        ),
        max_size=2,
    ).map(tuple),
    prefill=st.text(),
)
SCORES = st.none() | st.floats(0, 100)
MANY = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@MANY
@given(trial=TRIALS)
def test_a_trial_survives_its_json(trial: Trial) -> None:
    again = codec.decode_trial(codec.encode_trial(trial))
    assert again == trial
    assert again.key == trial.key


@MANY
@given(
    trial=TRIALS,
    text=ANY_TEXT,
    prompt=IDS,
    tokens=IDS,
    raw=ANY_TEXT,
    judge=ANY_TEXT,
    scores=st.lists(SCORES, max_size=4),
)
def test_what_is_stored_is_read_back(
    store: Store,
    trial: Trial,
    text: str,
    prompt: tuple[int, ...],
    tokens: tuple[int, ...],
    raw: str,
    judge: str,
    scores: list[float | None],
) -> None:
    made = Generation(trial.key, prompt, tokens, text, "length")
    verdict = Verdict(
        trial.key, judge, tuple(Attempt(i, i + 1, s) for i, s in enumerate(scores)), "ok", raw
    )
    if store.add([(trial, made)]).new:
        assert dict(store.trials(protocol=trial.protocol, arm=trial.arm))[trial] == made
    if store.add_verdicts([verdict]):
        assert store.verdicts(judge)[trial.key] == verdict


def test_surrogates_in_a_question_keep_the_key(store: Store) -> None:
    trial = replace(make_trial(0, "plain"), question="half \ud83d", protocol="\udfff")
    store.add([(trial, make_generation(trial))])
    ((again, _),) = store.trials(protocol="\udfff")
    assert (again, again.key) == (trial, trial.key)
    assert store.missing([trial]) == []


def test_a_token_id_that_does_not_fit_is_refused_whole(store: Store) -> None:
    trial = make_trial(1)
    with pytest.raises(OverflowError):
        store.add([make_pair(0), (trial, Generation(trial.key, (), (2**31,), "", "eos"))])
    assert list(store.trials()) == []


@pytest.mark.parametrize(("tokens", "latents"), [(0, 3), (1, 1), (17, 65)])
def test_traces_round_trip(store: Store, tokens: int, latents: int) -> None:
    rng = np.random.default_rng(0)
    values = np.maximum(rng.normal(size=(tokens, latents)), 0).astype(np.float32)
    trace = Trace("sae", 2, tuple(range(latents)), values)
    trial = make_trial(0)
    store.add([(trial, make_generation(trial, trace))])
    store.add_traces({trial.key: replace(trace, values=values + 1)}, name="teacher-forced")
    ((key, again),) = store.traces()
    assert (key, again.source, again.layer, again.latents) == (trial.key, "sae", 2, trace.latents)
    assert again.values.dtype == np.float32
    np.testing.assert_array_equal(again.values, values)
    ((_, other),) = store.traces("teacher-forced", protocol="esr")
    np.testing.assert_array_equal(other.values, values + 1)


def test_traces_without_latents_are_refused() -> None:
    empty = Trace("sae", 2, (), np.zeros((3, 0), np.float32))
    with pytest.raises(ValueError, match="no latents"):
        codec.pack_values(empty)


def test_calibrations_and_artifacts(store: Store) -> None:
    first = Calibration("k", "sae:3", 1.25, 0.5, None, 0, False)
    store.put_calibration(first, [{"strength": 0.5, "scores": [None, 20.0]}])
    store.put_calibration(replace(first, strength=9.0))
    assert store.get_calibration("k") == first
    assert store.get_calibration("other") is None
    assert store.calibrations() == [(first, [{"strength": 0.5, "scores": [None, 20.0]}])]
    store.put_artifact("funnel", {"labels": 3})
    store.put_artifact("funnel", {"labels": 4})
    assert store.get_artifact("funnel") == {"labels": 4}
    assert store.get_artifact("thirds", []) == []
    assert store.artifacts() == ["funnel"]
    with pytest.raises(ValueError, match="JSON"):
        store.put_artifact("bad", float("nan"))


# What stays


def test_missing_keeps_order_and_drops_what_is_stored_or_planned_twice(store: Store) -> None:
    trials = [make_trial(i) for i in (5, 3, 4, 3)]
    store.add([make_pair(4)])
    assert [t.seed for t in store.missing(trials)] == [5, 3]


def test_first_text_wins_and_the_conflict_is_told(store: Store) -> None:
    trial, made = make_pair(0)
    assert store.add([(trial, made), make_pair(1)]).new == 2
    assert store.add([(trial, made)]) == (0, 1, ())
    assert store.add([(trial, replace(made, text="else"))]) == (0, 0, (trial.key,))
    assert dict(store.trials())[trial] == made


def test_a_generation_of_another_trial_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="is not of trial"):
        store.add([(make_trial(0), make_generation(make_trial(1)))])


def test_verdicts_are_final_but_errors_are_not(store: Store) -> None:
    pairs = [make_pair(i) for i in range(3)]
    store.add(pairs)
    a, b, c = (t.key for t, _ in pairs)
    assert store.add_verdicts([make_verdict(a, "error"), make_verdict(b, "unscored")]) == 2
    assert {t.key for t, _ in store.unjudged("exact")} == {c}
    assert {t.key for t, _ in store.unjudged("exact", retry_errors=True)} == {a, c}
    assert {t.key for t, _ in store.unjudged("other", protocol="esr")} == {a, b, c}
    assert list(store.unjudged("other", protocol="sweep")) == []
    assert store.add_verdicts([make_verdict(a), make_verdict(b)]) == 1
    assert {k: v.status for k, v in store.verdicts("exact").items()} == {a: "ok", b: "unscored"}
    with pytest.raises(ValueError, match="nowhere is not stored"):
        store.add_verdicts([make_verdict(c), make_verdict("nowhere")])
    assert set(store.verdicts("exact")) == {a, b}


def test_counts_judges_and_sessions(store: Store) -> None:
    store.add([make_pair(i) for i in range(3)], engine="hf", seconds=0.5)
    store.add([make_pair(9, "plain")])
    keys = [t.key for t, _ in store.trials(arm="steered", model="tiny")]
    store.add_verdicts([make_verdict(k) for k in keys[:2]] + [make_verdict(keys[2], "error")])
    store.add_verdicts([make_verdict(keys[0], judge="a-second")])
    plain, steered = store.counts()
    assert plain == ("esr", "plain", "tiny", 1, {})
    assert steered.trials == 3
    assert steered.verdicts == {"a-second": {"ok": 1}, "exact": {"ok": 2, "error": 1}}
    assert store.judges() == ["exact", "a-second"]
    store.note(model_sha256="abc")
    (session,) = store.sessions()
    assert (session.trials, session.ended) == (4, None)
    assert session.last_added is not None
    assert session.last_added >= session.started
    assert session.facts["model_sha256"] == "abc"
    assert session.facts["packages"]["numpy"] == np.__version__
    assert session.facts["config"] == {"seed": 1}


@pytest.mark.parametrize("batch", [1, 3, 17, 65])
def test_the_digest_does_not_depend_on_batches_or_order(tmp_path: Path, batch: int) -> None:
    def fill(folder: Path, size: int, order: list[int]) -> str:
        with Store.open(folder, {}) as store:
            for at in range(0, len(order), size):
                pairs = [make_pair(i) for i in order[at : at + size]]
                store.add(pairs, engine=f"batch {size}", seconds=float(size))
                store.add_verdicts([make_verdict(t.key) for t, _ in pairs])
            return store.content_digest()

    order = list(range(65))
    shuffled = random.Random(batch).sample(order, len(order))
    assert fill(tmp_path / "a", 65, order) == fill(tmp_path / "b", batch, shuffled)
    assert fill(tmp_path / "c", 65, order[:-1]) != fill(tmp_path / "a", 65, order)


def test_every_kind_of_content_counts_in_the_digest(store: Store) -> None:
    trial, made = make_pair(0)
    seen = {store.content_digest()}
    store.add([(trial, made)])
    seen.add(store.content_digest())
    store.add_verdicts([make_verdict(trial.key)])
    seen.add(store.content_digest())
    store.put_calibration(Calibration("k", "sae:3", 1.25, 0.5, None, 0, False))
    seen.add(store.content_digest())
    store.add_traces({trial.key: Trace("sae", 1, (4,), np.ones((2, 1), np.float32))})
    seen.add(store.content_digest())
    store.put_artifact("funnel", 1)
    assert len(seen) == 5
    assert store.content_digest() in seen


def test_iterating_while_another_thread_writes(store: Store) -> None:
    store.add([make_pair(i) for i in range(300)])
    failures: list[BaseException] = []

    def judge() -> None:
        try:
            for trial, _ in store.unjudged("exact"):
                store.add_verdicts([make_verdict(trial.key)])
        except BaseException as error:
            failures.append(error)

    worker = threading.Thread(target=judge)
    worker.start()
    for i in range(300, 330):
        store.add([make_pair(i)])
    worker.join()
    assert failures == []
    assert len(store.verdicts("exact")) >= 300
    assert len({t.key for t, _ in store.trials()}) == 330


# Kills, second writers, bad folders


def start_appending(folder: Path, batch: int) -> subprocess.Popen[bytes]:
    script = Path(__file__).with_name("append_run.py")
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder), str(batch)], stdout=subprocess.PIPE
    )
    assert process.stdout
    assert process.stdout.readline() == b"open\n"
    return process


@pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9")
def test_killed_ten_times_and_resumed_is_the_uninterrupted_run(tmp_path: Path) -> None:
    with Store.open(tmp_path / "whole", {"seed": 1}) as whole:
        pairs = [make_pair(i) for i in range(TOTAL)]
        whole.add(pairs)
        whole.add_verdicts([make_verdict(t.key) for t, _ in pairs])
        expected = whole.content_digest()
    rng, seen = random.Random(7), []
    for batch in (1, 1, 1, 1, 2, 2, 2, 3, 3, 3):
        process = start_appending(tmp_path / "killed", batch)
        assert process.stdout
        process.stdout.read(rng.randrange(50))  # a dot per batch, so that slow machines get on too
        time.sleep(rng.uniform(0.0, 0.005))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with Store.open(tmp_path / "killed", mode="ro") as reader:
            seen.append(sum(c.trials for c in reader.counts()))
    assert seen == sorted(seen)
    assert 0 < seen[-1] < TOTAL
    process = start_appending(tmp_path / "killed", 100)
    process.communicate()
    assert process.returncode == 0
    with Store.open(tmp_path / "killed", {"seed": 1}) as resumed:
        assert resumed.content_digest() == expected
        assert len(list(resumed.trials())) == len({t.key for t, _ in resumed.trials()}) == TOTAL
        ended = [s.ended for s in resumed.sessions()]
    assert [e is None for e in ended] == [True] * 10 + [False, True]


def test_a_second_writer_is_told_who_holds_the_run(store: Store) -> None:
    code = "import sys; from steerback.store import Store; Store.open(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(store.folder)], capture_output=True, text=True
    )
    assert f"process {os.getpid()} is writing to this run" in done.stderr
    with pytest.raises(UserError, match=f"process {os.getpid()} is writing"):
        Store.open(store.folder)
    assert store.add([make_pair(0)]).new == 1
    with Store.open(store.folder, mode="ro") as reader:
        assert len(list(reader.trials())) == 1
        with pytest.raises(UserError, match="opened for reading only"):
            reader.add([make_pair(1)])


def test_another_configuration_is_refused_with_what_differs(tmp_path: Path) -> None:
    old = {"seed": 1, "model": {"name": "a", "slots": 8}, "out": "x"}
    new = {"seed": 2, "model": {"name": "a", "slots": 16}, "out": "y", "judge": "exact"}
    with Store.open(tmp_path, old) as store:
        store.put_artifact("latents", [1])
    with pytest.raises(UserError) as caught:
        Store.open(tmp_path, new, free=("model.slots", "out"))
    assert "(seed: 1 -> 2; judge: None -> 'exact')" in str(caught.value)
    with Store.open(tmp_path, {**old, "out": "z"}, free=("out",)) as again:
        assert again.config["out"] == "z"
    with Store.open(tmp_path) as unchecked:
        assert unchecked.config["seed"] == 1


def test_an_empty_run_takes_another_configuration(tmp_path: Path) -> None:
    Store.open(tmp_path, {"seed": 1}).close()
    with Store.open(tmp_path, {"seed": 2}) as store:
        assert store.config == {"seed": 2}
        store.add([make_pair(0)])
    with pytest.raises(UserError, match="seed: 2 -> 3"):
        Store.open(tmp_path, {"seed": 3})


def test_a_schema_from_the_future_is_refused(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE) as raw:
        raw.execute("UPDATE meta SET value = ? WHERE name = 'schema'", [str(SCHEMA + 1)])
    for mode in ("rw", "ro"):
        with pytest.raises(UserError, match=f"schema {SCHEMA + 1}.*upgrade with"):
            Store.open(tmp_path, mode=mode)  # type: ignore[arg-type]


def test_folders_that_are_no_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run here"):
        Store.open(tmp_path / "nothing", mode="ro")
    assert not (tmp_path / "nothing").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot make this folder"):
        Store.open(tmp_path / "file")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / FILE).write_text("not a database " * 100)
    (tmp_path / "other").mkdir()
    with sqlite3.connect(tmp_path / "other" / FILE) as raw:
        raw.execute("CREATE TABLE t (x)")
    for name in ("text", "other"):
        for mode in ("rw", "ro"):
            with pytest.raises(UserError, match="is not a steerback run"):
                Store.open(tmp_path / name, mode=mode)  # type: ignore[arg-type]


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    with Store.open(tmp_path, {"seed": 1}) as store:
        store.add([make_pair(0)])
        # SQLite reports this limit with the error that it reports for a disk without space.
        (pages,) = store._db.execute("PRAGMA page_count").fetchone()
        store._db.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(UserError, match="disk is full; free some space and run the same"):
            store.add([make_pair(i) for i in range(1, 200)])
        assert len(list(store.trials())) == 1
    with Store.open(tmp_path, {"seed": 1}) as again:
        assert again.add([make_pair(i) for i in range(200)]).new == 199


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, which those of `tmp_path` need not be."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


READ_AS_NOBODY = """
import os, sys
from steerback.errors import UserError
from steerback.store import Store
if os.getuid() == 0:  # root may write everywhere
    os.setuid(65534)
with Store.open(sys.argv[1], mode="ro") as store:
    print(len(list(store.trials())))
try:
    Store.open(sys.argv[1])
except UserError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_a_read_only_folder_can_be_read_and_refuses_a_writer(open_folder: Path) -> None:
    folder = open_folder / "run"
    with Store.open(folder, {}) as store:
        store.add([make_pair(0)])
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)
    try:
        done = subprocess.run(
            [sys.executable, "-c", READ_AS_NOBODY, str(folder)], capture_output=True, text=True
        )
    finally:
        folder.chmod(0o755)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["1", f"{folder}: cannot write here (Permission denied)"]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_a_killed_run_in_a_read_only_folder_is_one_line(open_folder: Path) -> None:
    folder, copy = open_folder / "run", open_folder / "copy"
    copy.mkdir()
    with Store.open(folder, {}) as store:
        store.add([make_pair(0)])
        for name in (FILE, f"{FILE}-wal"):
            (copy / name).write_bytes((folder / name).read_bytes())
    copy.chmod(0o555)
    try:
        done = subprocess.run(
            [sys.executable, "-c", READ_AS_NOBODY, str(copy)], capture_output=True, text=True
        )
    finally:
        copy.chmod(0o755)
    told = done.stderr.splitlines()[-1]
    assert told.endswith(
        f"UserError: {copy}: cannot open the run; check that it is writable, or copy it"
    )
    with Store.open(copy, mode="ro") as reader:
        assert len(list(reader.trials())) == 1


# Tables and files


def fill_for_tables(folder: Path) -> None:
    with Store.open(folder, {}) as store:
        store.add([make_pair(0), make_pair(1, "plain"), make_pair(2)])
        (a, _), (b, _) = store.trials(arm="steered")
        store.add_verdicts([make_verdict(a.key), make_verdict(b.key, "unscored")])


def test_read_is_a_table_with_one_row_per_trial(tmp_path: Path) -> None:
    fill_for_tables(tmp_path)
    frame = table.read(tmp_path)
    assert list(frame.columns) == list(table.COLUMNS)
    assert len(frame) == 3
    steered = frame[frame.arm == "steered"]
    assert set(steered["index"]) == {0, 2}
    assert set(steered.strength) == {1.5, 3.5}
    ok = frame[frame.status == "ok"].iloc[0]
    assert (ok.judge, ok.attempts, ok["first"], ok["last"]) == ("exact", 2, 20.5, 80.0)
    unscored = frame[frame.status == "unscored"].iloc[0]
    assert (unscored.attempts, np.isnan(unscored["first"])) == (0, True)
    plain = frame[frame.arm == "plain"].iloc[0]
    assert (plain.status, plain.source, plain.n_tokens) == (None, None, 2)
    with pytest.raises(UserError, match="no verdicts of judge 'exat'; did you mean 'exact'"):
        table.read(tmp_path, judge="exat")


def test_missing_is_what_the_statistics_leave_out(tmp_path: Path) -> None:
    """A trial whose last attempt alone has no score is `ok` and missing."""
    with Store.open(tmp_path, {}) as store:
        store.add([make_pair(0), make_pair(1), make_pair(2)])
        a, b, c = (t.key for t, _ in store.trials())
        half = Attempt(0, 3, 40.0), Attempt(3, 5, None)
        store.add_verdicts([make_verdict(a), Verdict(b, "exact", half, "ok")])
    frame = table.read(tmp_path).set_index("key")
    assert set(frame.status[[a, b]]) == {"ok"}
    assert list(frame.missing[[a, b]]) == [False, True]
    assert frame.missing[[c]].isna().all()
    assert list(frame[~frame.missing].index) == [a]


def test_the_search_for_strengths_is_left_out_of_the_table(tmp_path: Path) -> None:
    trial, made = make_pair(0)
    search = replace(trial, protocol="calibration")
    with Store.open(tmp_path, {}) as store:
        store.add([(trial, made), (search, replace(made, trial_key=search.key))])
    assert list(table.read(tmp_path).key) == [trial.key]
    assert set(table.read(tmp_path, calibration=True).key) == {trial.key, search.key}
    assert len(pd.read_csv(table.export(tmp_path, "csv"))) == 2


def test_an_empty_run_is_an_empty_table(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    assert table.read(tmp_path).shape == (0, len(table.COLUMNS))
    assert table.export(tmp_path, "jsonl").read_bytes() == b""


def test_exports_hold_the_same_rows(tmp_path: Path) -> None:
    fill_for_tables(tmp_path)
    frame = table.read(tmp_path)
    parquet = pd.read_parquet(table.export(tmp_path, "parquet", tmp_path / "t.parquet"))
    assert (
        parquet.astype(object)
        .where(parquet.notna(), None)
        .equals(frame.astype(object).where(frame.notna(), None))
    )
    csv = pd.read_csv(table.export(tmp_path, "csv"), keep_default_na=False)
    assert list(csv.text) == list(frame.text)
    lines = table.export(tmp_path).read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [r["key"] for r in records] == list(frame.key)
    assert [len(r["verdicts"]) for r in records] == [int(s is not None) for s in frame.status]
    again = [codec.decode_trial(json.dumps(r["trial"])) for r in records]
    with Store.open(tmp_path, mode="ro") as store:
        assert again == [t for t, _ in store.trials()]


def test_lone_surrogates_are_exported_readably(tmp_path: Path) -> None:
    trial, made = make_pair(0)
    with Store.open(tmp_path) as store:
        store.add([(trial, replace(made, text="half \ud83d"))])
    assert pd.read_csv(table.export(tmp_path, "csv")).text[0] == "half \\ud83d"
    assert pd.read_parquet(table.export(tmp_path, "parquet")).text[0] == "half \\ud83d"
    line = table.export(tmp_path, "jsonl").read_text()
    assert json.loads(line)["generation"]["text"] == "half \ud83d"


def test_a_failed_export_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_for_tables(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "t.jsonl").write_text("old")

    def broken(_: object) -> dict[str, object]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(table, "asdict", broken)
    with pytest.raises(UserError, match=r"cannot write here .No space left"):
        table.export(tmp_path, "jsonl", out / "t.jsonl")
    assert [p.name for p in out.iterdir()] == ["t.jsonl"]
    assert (out / "t.jsonl").read_text() == "old"


def test_export_mistakes_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store.open(tmp_path).close()
    with pytest.raises(UserError, match=r"unknown format 'parqet'; did you mean 'parquet'"):
        table.export(tmp_path, "parqet")
    with pytest.raises(UserError, match=r"cannot write here .No such file"):
        table.export(tmp_path, "csv", tmp_path / "none" / "t.csv")
    monkeypatch.setattr(table, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"parquet needs pyarrow; .*steerback\[parquet\]"):
        table.export(tmp_path, "parquet")


def test_the_page_about_runs_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Path(__file__).parents[1] / "docs" / "runs.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    fill_for_tables(tmp_path / "runs" / "demo")
    scope: dict[str, object] = {}
    for block in blocks:
        exec(block, scope)
    assert isinstance(scope["trials"], pd.DataFrame)
    assert len(scope["trials"]) == 3
    assert capsys.readouterr().out.count("answer") == 3
    columns = re.findall(r"^\| (`.*?) \|", page.read_text("utf-8"), re.MULTILINE)
    named = re.findall(r"`(\w+)`", " ".join(columns))
    assert set(table.COLUMNS) <= set(named)
