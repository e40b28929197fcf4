"""The SQLite file of a run: schema, opening, transactions, and its failures as one line each."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from steerback.codec import decode_text
from steerback.errors import UserError

FILE = "run.sqlite"
SCHEMA = 1
"""Version of the tables below. A reader refuses a higher one."""

TABLES = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    """CREATE TABLE provenance (
        session INTEGER PRIMARY KEY, started REAL NOT NULL, ended REAL, facts TEXT NOT NULL)""",
    """CREATE TABLE trials (
        key TEXT PRIMARY KEY, protocol TEXT NOT NULL, arm TEXT NOT NULL, model TEXT NOT NULL,
        cluster TEXT NOT NULL, trial TEXT NOT NULL, prompt_ids BLOB NOT NULL,
        token_ids BLOB NOT NULL, text TEXT NOT NULL, finish_reason TEXT NOT NULL,
        engine TEXT NOT NULL, seconds REAL NOT NULL, session INTEGER NOT NULL,
        added REAL NOT NULL)""",
    "CREATE INDEX trials_by_arm ON trials (protocol, arm, model, cluster)",
    """CREATE TABLE verdicts (
        trial_key TEXT NOT NULL REFERENCES trials (key), judge TEXT NOT NULL, status TEXT NOT NULL,
        attempts TEXT NOT NULL, raw TEXT NOT NULL, PRIMARY KEY (judge, trial_key))""",
    """CREATE TABLE calibrations (
        key TEXT PRIMARY KEY, direction TEXT NOT NULL, record TEXT NOT NULL,
        steps TEXT NOT NULL)""",
    """CREATE TABLE activations (
        trial_key TEXT NOT NULL REFERENCES trials (key), name TEXT NOT NULL, source TEXT NOT NULL,
        layer INTEGER NOT NULL, latents TEXT NOT NULL, data BLOB NOT NULL,
        PRIMARY KEY (trial_key, name, source, layer))""",
    "CREATE TABLE artifacts (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
)

DAMAGED = f"{FILE} is damaged; restore the folder from a copy"
REMEDIES = (
    ("disk is full", "the disk is full; free some space and run the same command again"),
    ("readonly database", "the run is read-only; make it writable or copy the folder"),
    ("unable to open", "cannot open the run; check that it is writable, or copy it"),
    ("not a database", f"{FILE} is not a steerback run; choose another folder"),
    ("malformed", DAMAGED),
    ("disk I/O error", "the disk refused to read or write; free some space or check the disk"),
    ("locked", "another program holds the run's file; close it and try again"),
)


@contextmanager
def plain_errors(folder: Path) -> Iterator[None]:
    """SQLite's failures that a user can mend, as one line that says how."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        for words, remedy in REMEDIES:
            if words in str(error):
                raise UserError(f"{folder}: {remedy}") from error
        raise


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of the statements inside, or none."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # A full disk may have rolled back by itself.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def _opened(folder: Path, flags: str) -> Iterator[sqlite3.Connection]:
    """A connection that is closed only if the block fails."""
    uri = f"file:{quote(str((folder / FILE).resolve()))}?{flags}"
    # The store guards its connection with a lock, so that a judge may write from another thread.
    connection = sqlite3.connect(
        uri, uri=True, timeout=30, isolation_level=None, check_same_thread=False
    )
    connection.text_factory = decode_text
    try:
        yield connection
    except BaseException:
        connection.close()
        raise


def open_writer(folder: Path) -> sqlite3.Connection:
    """The run's file for writing, made if there is none. The caller holds the folder's lock."""
    with plain_errors(folder), _opened(folder, "mode=rwc") as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
            with transaction(connection):
                for statement in TABLES:
                    connection.execute(statement)
                connection.execute("INSERT INTO meta VALUES ('schema', ?)", [str(SCHEMA)])
        check_schema(connection, folder)
    return connection


def open_reader(folder: Path) -> sqlite3.Connection:
    """The run's file for reading, while it is being written or from a read-only place."""
    try:
        there = (folder / FILE).is_file()
    except OSError as error:
        raise UserError(f"{folder}: cannot look into this folder ({error.strerror})") from None
    if not there:
        raise UserError(f"{folder}: no run here (there is no {FILE}); check the path")
    with plain_errors(folder):
        try:
            with _opened(folder, "mode=ro") as connection:
                check_schema(connection, folder)
        except sqlite3.OperationalError:
            # WAL needs to write its index file. Without a log to replay the file alone is complete.
            if (folder / f"{FILE}-wal").exists():
                raise
            with _opened(folder, "mode=ro&immutable=1") as connection:
                check_schema(connection, folder)
    return connection


def check_whole(folder: Path) -> None:
    """Raises UserError unless there is a run whose pages can all be read. Writes nothing."""
    connection = open_reader(folder)
    try:
        with plain_errors(folder):
            if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise UserError(f"{folder}: {DAMAGED}")
    finally:
        connection.close()


def check_schema(connection: sqlite3.Connection, folder: Path) -> None:
    """Raises UserError unless the file is a run that this version can read."""
    tables = connection.execute("SELECT name FROM sqlite_master WHERE name = 'meta'").fetchone()
    row = tables and connection.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone()
    if not row or not row[0].isdigit():
        raise UserError(f"{folder}: {FILE} is not a steerback run; choose another folder")
    if int(row[0]) > SCHEMA:
        raise UserError(
            f"{folder}: written by a newer steerback (schema {row[0]}, this version reads "
            f"{SCHEMA}); upgrade with: pip install -U steerback"
        )
