"""A run on disk: one SQLite file that holds every trial, verdict and calibration made so far.

What is stored stays: a trial's first text and a judge's first verdict win, nothing is deleted, and
each call that writes is one transaction, so that a kill loses at most the batch in flight.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

from steerback import codec
from steerback.database import (
    FILE,
    SCHEMA,
    check_whole,
    open_reader,
    open_writer,
    plain_errors,
    transaction,
)
from steerback.errors import UserError
from steerback.lock import LOCK, FolderLock
from steerback.mappings import diff
from steerback.provenance import environment
from steerback.types import Calibration, Generation, Status, Trace, Trial, Verdict, canonical_json

PAGE = 256
"""Trials read at a time: iterating over a run holds no more than this in memory."""
GENERATED = "generated"
"""Name of the activations that the engine watched while it generated the trial."""


class Added(NamedTuple):
    """What a call to `Store.add` did."""

    new: int
    repeated: int
    """Stored before with the same tokens and text."""
    conflicts: tuple[str, ...]
    """Keys stored before with other tokens: the engine was not deterministic. The first stays."""


class ArmCount(NamedTuple):
    """How far one arm of one protocol is."""

    protocol: str
    arm: str
    model: str
    trials: int
    verdicts: dict[str, dict[Status, int]]
    """judge -> status -> number of trials."""


class Session(NamedTuple):
    """One process that wrote to the run."""

    started: float
    """Seconds since 1970."""
    ended: float | None
    """None while it runs, or for ever if it was killed."""
    facts: dict[str, Any]
    trials: int
    last_added: float | None


class Store:
    """Records of one run folder. Safe to use from several threads of one process.

    Open with `Store.open`, close with `close` or as a context manager.
    """

    def __init__(
        self, folder: Path, connection: sqlite3.Connection, lock: FolderLock | None
    ) -> None:
        self.folder = folder
        self._db = connection
        self._lock = lock
        self._guard = threading.RLock()
        self._session = 0
        self._made: list[Path] = []
        self.spare: set[str] = set()
        """Names of files beside the run's that are worth nothing while it is empty."""

    @classmethod
    def open(
        cls,
        folder: str | Path,
        config: Mapping[str, Any] | None = None,
        mode: Literal["rw", "ro", "extend"] = "rw",
        free: Collection[str] = (),
        facts: Mapping[str, Any] | None = None,
    ) -> Store:
        """The run in `folder`, made if there is none and the mode is rw; `extend` writes to a run that
        is there, and touches nothing where there is none.

        `config` is the resolved configuration as JSON values. A run made with another one is
        refused, except that dotted keys in `free` may change. `facts` are added to the session's
        provenance. Raises UserError: the folder is no run or of a newer schema, another process
        writes to it, the configuration differs, the disk is full or read-only.
        """
        place = Path(folder)
        if mode == "ro":
            return cls(place, open_reader(place), None)
        if mode == "extend":
            check_whole(place)
        made = [p for p in (place, *place.parents) if not p.exists()]
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{place}: cannot make this folder ({error.strerror})") from None
        lock = FolderLock(place)
        try:
            store = cls(place, open_writer(place), lock)
        except BaseException:
            lock.release()
            raise
        store._made = made
        try:
            store._begin(config, free, facts or {})
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Ends the session. A store whose disk is full closes too."""
        try:
            if self._session:
                with self._write():
                    self._db.execute(
                        "UPDATE provenance SET ended = ? WHERE session = ?",
                        [time.time(), self._session],
                    )
        except UserError:
            pass  # the end time is a courtesy; what counts has been written or reported before
        finally:
            self._db.close()
            if self._lock:
                self._lock.release()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        mistaken = isinstance(error, UserError) and bool(self._made) and self.empty
        self.close()
        if mistaken:
            self._unmake()

    def _unmake(self) -> None:
        """Takes back the folders that opening made, unless something else lies in them by now."""
        files = list(self.folder.iterdir())
        if any(f.name not in (FILE, LOCK, *self.spare) for f in files):
            return
        with suppress(OSError):  # another process is quicker: what it made stays
            for file in files:
                file.unlink()
            for folder in self._made:
                folder.rmdir()

    @property
    def empty(self) -> bool:
        """Whether nothing was ever found or made: such a run may still take another configuration."""
        tables = ("trials", "calibrations", "artifacts")
        return not any(self._rows(f"SELECT 1 FROM {table} LIMIT 1") for table in tables)

    # Trials

    def missing(self, trials: Iterable[Trial]) -> list[Trial]:
        """Those not stored yet, in order, each once."""
        have = {key for (key,) in self._rows("SELECT key FROM trials")}
        return list({t.key: t for t in trials if t.key not in have}.values())

    def add(
        self,
        finished: Iterable[tuple[Trial, Generation]],
        *,
        engine: str = "",
        seconds: float = 0.0,
    ) -> Added:
        """Stores trials with what was generated, all or none; traces go to the activations.

        `engine` names what generated them, `seconds` is the engine time per trial. A key that is
        stored keeps its first text. Raises ValueError if a generation is of another trial.
        """
        new, repeated, conflicts = 0, 0, []
        with self._write():
            for trial, made in finished:
                if made.trial_key != trial.key:
                    raise ValueError(f"generation {made.trial_key} is not of trial {trial.key}")
                if self._insert_trial(trial, made, engine, seconds):
                    new += 1
                elif self._generation(trial.key) == replace(made, trace=None):
                    repeated += 1
                else:
                    conflicts.append(trial.key)
        return Added(new, repeated, tuple(conflicts))

    def trials(
        self,
        protocol: str | None = None,
        arm: str | None = None,
        model: str | None = None,
    ) -> Iterator[tuple[Trial, Generation]]:
        """Stored trials in the order of their keys, which does not depend on how they were made.

        Traces are left out; see `traces`. Safe while others write: trials added meanwhile may or
        may not be seen.
        """
        yield from self._page("", [], protocol=protocol, arm=arm, model=model)

    # Verdicts

    def unjudged(
        self, judge: str, protocol: str | None = None, retry_errors: bool = False
    ) -> Iterator[tuple[Trial, Generation]]:
        """Trials without a verdict of `judge`; with `retry_errors`, also those where it failed."""
        final = "AND v.status != 'error'" if retry_errors else ""
        without = (
            "AND NOT EXISTS (SELECT 1 FROM verdicts v WHERE v.trial_key = key "
            f"AND v.judge = CAST(? AS TEXT) {final})"
        )
        yield from self._page(without, [codec.encode_text(judge)], protocol=protocol)

    def add_verdicts(self, verdicts: Iterable[Verdict]) -> int:
        """Stores them, all or none, and returns how many were written.

        The first verdict of a judge stays, unless it was an error: that one is replaced. Raises
        ValueError for a trial that is not stored.
        """
        sql = (
            "INSERT INTO verdicts VALUES (?, CAST(? AS TEXT), ?, ?, CAST(? AS TEXT)) "
            "ON CONFLICT (judge, trial_key) DO UPDATE SET status = excluded.status, "
            "attempts = excluded.attempts, raw = excluded.raw WHERE verdicts.status = 'error'"
        )
        written = 0
        with self._write():
            for v in verdicts:
                judge, raw = codec.encode_text(v.judge), codec.encode_text(v.raw)
                attempts = codec.encode_attempts(v.attempts)
                written += self._insert(sql, [v.trial_key, judge, v.status, attempts, raw])
        return written

    def verdicts(self, judge: str) -> dict[str, Verdict]:
        """The verdicts of one judge by trial key."""
        rows = self._rows(
            "SELECT trial_key, status, attempts, raw FROM verdicts "
            "WHERE judge = CAST(? AS TEXT) ORDER BY trial_key",
            [codec.encode_text(judge)],
        )
        return {
            key: Verdict(key, judge, codec.decode_attempts(attempts), status, raw)
            for key, status, attempts, raw in rows
        }

    def judges(self) -> list[str]:
        """Names of the judges with verdicts here, the one with most verdicts first; of several with
        as many, the one that the run was made with."""
        rows = self._rows("SELECT judge, count(*) FROM verdicts GROUP BY judge")
        own = {s.facts.get("judge") for s in self.sessions()}
        return [judge for judge, _ in sorted(rows, key=lambda r: (-r[1], r[0] not in own, r[0]))]

    # Calibrations, activations, artifacts

    def get_calibration(self, key: str) -> Calibration | None:
        """The calibration with this key, or None."""
        rows = self._rows("SELECT record FROM calibrations WHERE key = ?", [key])
        return codec.decode_calibration(rows[0][0]) if rows else None

    def put_calibration(self, calibration: Calibration, steps: Sequence[Any] = ()) -> None:
        """Stores it with its search steps (JSON values). The first under a key stays."""
        row = [
            calibration.key,
            codec.encode_text(calibration.direction),
            codec.encode_calibration(calibration),
            canonical_json(list(steps)),
        ]
        with self._write():
            self._insert(
                "INSERT OR IGNORE INTO calibrations VALUES (?, CAST(? AS TEXT), ?, ?)", row
            )

    def calibrations(self) -> list[tuple[Calibration, list[Any]]]:
        """All of them with their steps, in the order of their keys."""
        rows = self._rows("SELECT record, steps FROM calibrations ORDER BY key")
        return [(codec.decode_calibration(record), json.loads(steps)) for record, steps in rows]

    def add_traces(self, traces: Mapping[str, Trace], name: str = GENERATED) -> None:
        """Stores activations by trial key, all or none; the first under a name stays.

        `name` says how they were read: `generated`, or another for a teacher-forced pass.
        """
        with self._write():
            for key, trace in traces.items():
                self._insert_trace(key, trace, name)

    def traces(
        self, name: str = GENERATED, protocol: str | None = None
    ) -> Iterator[tuple[str, Trace]]:
        """(trial key, activations) in the order of the keys."""
        where, values = _where(protocol=protocol)
        keys = self._rows(f"SELECT key FROM trials WHERE 1 {where} ORDER BY key", values)
        for (key,) in keys:
            for trace in self._traces_of(key, name):
                yield key, trace

    def put_artifact(self, name: str, value: Any) -> None:
        """Stores JSON under a name (a latent funnel, a ranking); a later value replaces it."""
        with self._write():
            self._insert(
                "INSERT OR REPLACE INTO artifacts VALUES (?, ?)", [name, canonical_json(value)]
            )

    def get_artifact(self, name: str, default: Any = None) -> Any:
        """The value stored under the name, or the default."""
        rows = self._rows("SELECT value FROM artifacts WHERE name = ?", [name])
        return json.loads(rows[0][0]) if rows else default

    def artifacts(self) -> list[str]:
        """Names of what `get_artifact` has."""
        return [name for (name,) in self._rows("SELECT name FROM artifacts ORDER BY name")]

    # The run as a whole

    @property
    def config(self) -> dict[str, Any]:
        """The configuration that the run was last opened with; empty if there was none."""
        rows = self._rows("SELECT value FROM meta WHERE name = 'config'")
        config: dict[str, Any] = json.loads(rows[0][0]) if rows else {}
        return config

    def note(self, **facts: Any) -> None:
        """Adds facts (JSON values: hashes of model and SAE, slots, ...) to this session's."""
        with self._write():
            (old,) = self._rows("SELECT facts FROM provenance WHERE session = ?", [self._session])
            merged = canonical_json({**json.loads(old[0]), **facts})
            self._db.execute(
                "UPDATE provenance SET facts = ? WHERE session = ?", [merged, self._session]
            )

    def engine_seconds(self) -> dict[str, float]:
        """Time spent on generating, by engine."""
        rows = self._rows("SELECT engine, sum(seconds) FROM trials GROUP BY engine")
        return {str(engine): float(seconds) for engine, seconds in rows}

    def sessions(self) -> list[Session]:
        """Every process that wrote to the run, oldest first, with how many trials it added."""
        rows = self._rows(
            "SELECT started, ended, facts, count(t.key), max(t.added) FROM provenance p "
            "LEFT JOIN trials t ON t.session = p.session GROUP BY p.session ORDER BY p.session"
        )
        return [Session(a, b, json.loads(facts), n, last) for a, b, facts, n, last in rows]

    def counts(self) -> list[ArmCount]:
        """Trials and verdicts per protocol, arm and model."""
        arms = {
            (protocol, arm, model): ArmCount(protocol, arm, model, n, {})
            for protocol, arm, model, n in self._rows(
                "SELECT protocol, arm, model, count(*) FROM trials "
                "GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
            )
        }
        for protocol, arm, model, judge, status, n in self._rows(
            "SELECT protocol, arm, model, judge, status, count(*) FROM verdicts "
            "JOIN trials ON key = trial_key GROUP BY 1, 2, 3, 4, 5 ORDER BY 4, 5"
        ):
            arms[protocol, arm, model].verdicts.setdefault(judge, {})[status] = n
        return list(arms.values())

    def content_digest(self) -> str:
        """Hash of trials, texts, verdicts, calibrations and activations, in order of their keys.

        Two runs of one configuration have the same digest however they were batched, interrupted
        and resumed. Times, engines, sessions, artifacts and search steps do not count.
        """
        digest = hashlib.blake2b(digest_size=16)
        for sql in _CONTENT:
            with self._guard, plain_errors(self.folder):
                for row in self._db.execute(sql):
                    digest.update(repr(row).encode("utf-8", "surrogatepass"))
        for key, name in self._rows(
            "SELECT DISTINCT trial_key, name FROM activations ORDER BY trial_key, name"
        ):
            digest.update(f"{key} {name}".encode("utf-8", "surrogatepass"))
            for trace in self._traces_of(key, name):
                digest.update(repr((trace.source, trace.layer, trace.latents)).encode())
                digest.update(trace.values.tobytes())
        return digest.hexdigest()

    # Inside

    def _begin(
        self, config: Mapping[str, Any] | None, free: Collection[str], facts: Mapping[str, Any]
    ) -> None:
        resolved = None if config is None else json.loads(canonical_json(config))
        lines = diff(self.config, resolved, free) if resolved is not None and self.config else []
        if lines and not self.empty:
            raise UserError(
                f"{self.folder}: made with another configuration ({'; '.join(lines)}); "
                "choose another folder, or run with the old values"
            )
        described = {"schema": SCHEMA, **environment(), "config": resolved, **facts}
        with self._write():
            if resolved is not None:
                self._insert(
                    "INSERT OR REPLACE INTO meta VALUES ('config', ?)", [canonical_json(resolved)]
                )
            cursor = self._db.execute(
                "INSERT INTO provenance (started, facts) VALUES (?, ?)",
                [time.time(), canonical_json(described)],
            )
        self._session = cursor.lastrowid or 0

    @contextmanager
    def _write(self) -> Iterator[None]:
        with self._guard, plain_errors(self.folder):
            if self._lock is None:
                raise UserError(f"{self.folder}: opened for reading only")
            with transaction(self._db):
                yield

    def _rows(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._guard, plain_errors(self.folder):
            return self._db.execute(sql, values).fetchall()

    def _insert(self, sql: str, values: Sequence[Any]) -> int:
        try:
            return self._db.execute(sql, values).rowcount
        except sqlite3.IntegrityError as error:
            raise ValueError(f"trial {values[0]} is not stored in {self.folder}") from error

    def _insert_trial(self, t: Trial, g: Generation, engine: str, seconds: float) -> bool:
        text = codec.encode_text
        row: list[Any] = [t.key, text(t.protocol), text(t.arm), text(t.model), text(t.cluster)]
        row += [codec.encode_trial(t), codec.pack_ids(g.prompt_ids), codec.pack_ids(g.token_ids)]
        row += [text(g.text), g.finish_reason, engine, seconds, self._session, time.time()]
        sql = (
            "INSERT OR IGNORE INTO trials VALUES (?, CAST(? AS TEXT), CAST(? AS TEXT), "
            "CAST(? AS TEXT), CAST(? AS TEXT), ?, ?, ?, CAST(? AS TEXT), ?, ?, ?, ?, ?)"
        )
        if not self._insert(sql, row):
            return False
        if g.trace is not None:
            self._insert_trace(t.key, g.trace, GENERATED)
        return True

    def _insert_trace(self, key: str, trace: Trace, name: str) -> None:
        row = [key, codec.encode_text(name), codec.encode_text(trace.source), trace.layer]
        row += [canonical_json(list(trace.latents)), codec.pack_values(trace)]
        self._insert(
            "INSERT OR IGNORE INTO activations "
            "VALUES (?, CAST(? AS TEXT), CAST(? AS TEXT), ?, ?, ?)",
            row,
        )

    def _traces_of(self, key: str, name: str) -> list[Trace]:
        rows = self._rows(
            "SELECT source, layer, latents, data FROM activations "
            "WHERE trial_key = ? AND name = CAST(? AS TEXT) ORDER BY source, layer",
            [key, codec.encode_text(name)],
        )
        return [codec.unpack_trace(*row) for row in rows]

    def _generation(self, key: str) -> Generation:
        (row,) = self._rows(f"SELECT {_GENERATION} FROM trials WHERE key = ?", [key])
        return _decode(row)[1]

    def _page(
        self, where: str, values: list[Any], **equal: str | None
    ) -> Iterator[tuple[Trial, Generation]]:
        more, equals = _where(**equal)
        sql = (
            f"SELECT {_GENERATION} FROM trials WHERE key > ? {more} {where} "
            f"ORDER BY key LIMIT {PAGE}"
        )
        last = ""
        while rows := self._rows(sql, [last, *equals, *values]):
            yield from map(_decode, rows)
            last = rows[-1][0]


_GENERATION = "key, trial, prompt_ids, token_ids, text, finish_reason"
_CONTENT = (
    f"SELECT {_GENERATION} FROM trials ORDER BY key",
    "SELECT * FROM verdicts ORDER BY judge, trial_key",
    "SELECT record FROM calibrations ORDER BY key",
)


def _decode(row: Sequence[Any]) -> tuple[Trial, Generation]:
    key, trial, prompt_ids, token_ids, text, finish = row
    made = Generation(key, codec.unpack_ids(prompt_ids), codec.unpack_ids(token_ids), text, finish)
    return codec.decode_trial(trial), made


def _where(**equal: str | None) -> tuple[str, list[bytes]]:
    given = {name: codec.encode_text(value) for name, value in equal.items() if value is not None}
    return " ".join(f"AND {name} = CAST(? AS TEXT)" for name in given), list(given.values())
