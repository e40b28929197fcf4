"""Named tensors in files, read in parts: 500 rows of a 2 GB matrix cost 500 rows of memory.

A published SAE is a file of named tensors. Every file type here opens as a mapping from names to
`Part`s, and a part gives blocks of rows in ascending order, so one implementation of "these
rows", "these columns" and "all of it" serves them all. Nothing is unpickled into objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import Path
from types import EllipsisType
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from steerback.errors import UserError

BLOCK_BYTES = 16 << 20


class Part(Protocol):
    """A tensor that lies in a file."""

    @property
    def shape(self) -> Sequence[int]: ...

    def __getitem__(self, rows: slice | EllipsisType, /) -> Tensor:
        """Rows start:stop (no step) in the file's own dtype; `...` is all of it."""
        ...


class TensorFile(Protocol):
    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that hold the tensors."""
        ...

    def open(self) -> AbstractContextManager[Mapping[str, Part]]:
        """The tensors by name, valid inside the context. Raises UserError on a damaged file."""
        ...


def find(parts: Mapping[str, Part], key: str, where: object) -> Part:
    if key not in parts:
        found = ", ".join(sorted(parts)) or "nothing"
        raise UserError(f"{where}: there is no tensor '{key}'; the file holds {found}")
    return parts[key]


def blocks(part: Part) -> Iterator[tuple[int, Tensor]]:
    """(first row, float32 rows) over the whole part, at most about 16 MB at a time."""
    step = _rows_per_block(part)
    for start in range(0, part.shape[0], step):
        yield start, _float(part[start : min(start + step, part.shape[0])])


def rows(part: Part, indices: Sequence[int]) -> Tensor:
    """[len(indices), ...] float32 on the CPU; any order, repeats allowed, only those are read."""
    wanted = sorted(set(indices))
    out = torch.empty(len(wanted), *part.shape[1:])
    for at, start, stop in _runs(wanted, _rows_per_block(part)):
        out[at : at + stop - start] = _float(part[start:stop])
    if wanted == list(indices):
        return out
    place = {index: at for at, index in enumerate(wanted)}
    return out[[place[index] for index in indices]]


def columns(part: Part, indices: Sequence[int]) -> Tensor:
    """[n_rows, len(indices)] float32: the part passes by in blocks, the columns are kept."""
    keep = torch.tensor(list(indices), dtype=torch.long)
    out = torch.empty(part.shape[0], len(indices))
    step = _rows_per_block(part)
    for start in range(0, part.shape[0], step):
        block = part[start : min(start + step, part.shape[0])]
        out[start : start + len(block)] = block[:, keep]
    return out


def whole(part: Part) -> Tensor:
    return rows(part, range(part.shape[0]))


def number(part: Part) -> float:
    """The value of a tensor of one element."""
    return float(part[...])


def _float(block: Tensor) -> Tensor:
    return block.to(torch.float32)


def _rows_per_block(part: Part) -> int:
    row = 4
    for size in part.shape[1:]:
        row *= size
    return max(1, BLOCK_BYTES // max(row, 1))


def _runs(wanted: Sequence[int], longest: int) -> Iterator[tuple[int, int, int]]:
    """(position, first, last + 1) of consecutive indices in an ascending list."""
    cuts = [at + 1 for at, (a, b) in enumerate(pairwise(wanted)) if b != a + 1]
    for left, right in pairwise([0, *cuts, len(wanted)]):
        for at in range(left, right, longest):
            end = min(at + longest, right)
            yield at, wanted[at], wanted[end - 1] + 1


class SafetensorsFile:
    """One `.safetensors` file."""

    def __init__(self, path: Path) -> None:
        self.paths = (path,)

    @contextmanager
    def open(self) -> Iterator[Mapping[str, Part]]:
        try:
            file = safe_open(self.paths[0], framework="pt")
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{self.paths[0]}: not a whole safetensors file ({error}); download it again"
            ) from error
        with file as tensors:
            yield {key: _Slice(tensors.get_slice(key)) for key in tensors.keys()}  # noqa: SIM118


class _Slice:
    def __init__(self, stored: Any) -> None:
        self.stored = stored
        self.shape: Sequence[int] = stored.get_shape()

    def __getitem__(self, rows: slice | EllipsisType, /) -> Tensor:
        block: Tensor = self.stored[rows]
        return block


class MemoryTensors:
    """Tensors that are in memory already."""

    paths: tuple[Path, ...] = ()

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    @contextmanager
    def open(self) -> Iterator[Mapping[str, Part]]:
        yield self.tensors
