"""Files that a user asks for: none is written over, and what stands in the way is one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from steerback.errors import UserError


def refuse_taken(path: Path) -> None:
    """Raises UserError unless a new file may be made at `path`: before anything is computed for it."""
    if path.exists():
        raise UserError(f"{path} exists; choose another name or delete it first")
    if not path.parent.is_dir():
        raise UserError(
            f"{path}: there is no folder {path.parent}; make it first, or choose another"
        )


@contextmanager
def written(path: Path) -> Iterator[None]:
    """What the disk refuses while the file is written, as one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None
