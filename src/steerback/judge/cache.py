"""Answers of paid judges, kept on disk: a rerun costs nothing, whatever happened to the run."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

from steerback.codec import decode_text, encode_text
from steerback.errors import UserError

_TABLE = """CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, model TEXT NOT NULL, answer BLOB NOT NULL) WITHOUT ROWID"""


class AnswerCache:
    """Key -> answer in one SQLite file (":memory:" keeps nothing). Usable from several threads and
    processes; an answer is on disk when `put` returns."""

    def __init__(self, path: str | Path = ":memory:") -> None:
        self.path = str(path)
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(
                self.path, timeout=60, isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute(_TABLE)
        except sqlite3.Error as error:
            raise self._broken(error) from None

    def get(self, key: str) -> str | None:
        try:
            with self._lock:
                row = self._db.execute("SELECT answer FROM answers WHERE key = ?", [key]).fetchone()
        except sqlite3.Error as error:
            raise self._broken(error) from None
        return None if row is None else decode_text(row[0])

    def put(self, key: str, model: str, answer: str) -> None:
        """Keep an answer; one that later rules no longer accept gives way."""
        try:
            with self._lock:
                self._db.execute(
                    "INSERT OR REPLACE INTO answers VALUES (?, ?, ?)",
                    [key, model, encode_text(answer)],
                )
        except sqlite3.Error as error:
            raise self._broken(error) from None

    def __len__(self) -> int:
        with self._lock:
            return int(self._db.execute("SELECT count(*) FROM answers").fetchone()[0])

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _broken(self, error: sqlite3.Error) -> UserError:
        return UserError(
            f"judge cache {self.path}: {error}; free the disk, or delete the file to ask anew"
        )
