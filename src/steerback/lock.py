"""One writer per run folder: an operating-system lock that a killed process cannot leave behind."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import BinaryIO

from steerback.errors import UserError

if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: BinaryIO) -> None:
        # Windows locks are mandatory: one byte far behind the pid keeps the pid readable.
        file.seek(1 << 30)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _try_lock(file: BinaryIO) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


LOCK = "run.lock"
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)


class FolderLock:
    """Holds `run.lock` in a folder from construction until `release` or the end of the process.

    Raises UserError with the pid of the holder when another process (or another store of this
    one) has it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        try:
            # Never truncated on opening: the pid in it may be that of a living holder.
            self._file: BinaryIO = os.fdopen(os.open(self.path, _FLAGS, 0o666), "r+b")
        except OSError as error:
            raise UserError(f"{folder}: cannot write here ({error.strerror})") from None
        try:
            _try_lock(self._file)
        except OSError:
            raise UserError(self._refusal(folder)) from None
        self._write_pid()

    def _refusal(self, folder: Path) -> str:
        with self._file:
            self._file.seek(0)
            pid = self._file.read(32).decode("ascii", "replace").strip() or "unknown"
        return (
            f"{folder}: process {pid} is writing to this run; wait for it, or choose another folder"
        )

    def _write_pid(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._file.write(b"%d\n" % os.getpid())
        try:
            self._file.flush()
        except OSError as error:
            raise UserError(f"{self.path.parent}: cannot write here ({error.strerror})") from None

    def release(self) -> None:
        """Lets the next writer in. The file stays: removing it would race with that writer."""
        self._file.close()
