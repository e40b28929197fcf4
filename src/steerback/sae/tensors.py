"""Named tensors in files, read in parts: 500 rows of a 2 GB matrix cost 500 rows of memory.

A published SAE is a file of named tensors. Every file type here opens as a mapping from names to
`Part`s, and a part gives blocks of rows in ascending order, so one implementation of "these
rows", "these columns" and "all of it" serves them all. Nothing is unpickled into objects.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from io import BufferedReader
from itertools import pairwise
from math import prod
from pathlib import Path
from types import EllipsisType
from typing import Any, ClassVar, Protocol

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
    return max(1, BLOCK_BYTES // max(4 * prod(part.shape[1:]), 1))


def _runs(wanted: Sequence[int], longest: int) -> Iterator[tuple[int, int, int]]:
    """(position, first, last + 1) of consecutive indices in an ascending list."""
    cuts = [at + 1 for at, (a, b) in enumerate(pairwise(wanted)) if b != a + 1]
    for left, right in pairwise([0, *cuts, len(wanted)]):
        for at in range(left, right, longest):
            end = min(at + longest, right)
            yield at, wanted[at], wanted[end - 1] + 1


class FilePart:
    """A tensor that lies uncompressed, rows one after another, at byte `at` of an open file."""

    def __init__(
        self, file: BufferedReader, at: int, shape: Sequence[int], dtype: torch.dtype
    ) -> None:
        self.file, self.at, self.dtype = file, at, dtype
        self.shape = shape

    def __getitem__(self, rows: slice | EllipsisType, /) -> Tensor:
        if not isinstance(rows, slice):
            return self._read(0, self.shape)
        start, stop, row = rows.start, rows.stop, prod(self.shape[1:])
        return self._read(start * row, (stop - start, *self.shape[1:]))

    def _read(self, first: int, shape: Sequence[int]) -> Tensor:
        raw = bytearray(prod(shape) * self.dtype.itemsize)
        self.file.seek(self.at + first * self.dtype.itemsize)
        if self.file.readinto(raw) != len(raw):
            raise UserError(f"{self.file.name}: the file ends early; download it again")
        return from_bytes(raw, shape, self.dtype)


def from_bytes(raw: bytearray, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor over these bytes; torch itself refuses none at all."""
    if not raw:
        return torch.empty(tuple(shape), dtype=dtype)
    return torch.frombuffer(raw, dtype=dtype).reshape(tuple(shape))


class SafetensorsFile:
    """One `.safetensors` file: safetensors checks it, rows are read at their place.

    (safetensors itself maps the file, so that reading columns would draw all of it into memory.)
    """

    DTYPES: ClassVar = {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
    }

    def __init__(self, path: Path) -> None:
        self.paths = (path,)

    @contextmanager
    def open(self) -> Iterator[Mapping[str, Part]]:
        path = self.paths[0]
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{path}: not a whole safetensors file ({error}); download it again"
            ) from error
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            yield {key: self._part(file, 8 + length, key, entry) for key, entry in header.items()}

    def _part(
        self, file: BufferedReader, data: int, key: str, entry: Mapping[str, Any]
    ) -> FilePart:
        dtype = self.DTYPES.get(entry["dtype"])
        if dtype is None:
            raise UserError(
                f"{self.paths[0]}: '{key}' has dtype {entry['dtype']}; expected floating point"
            )
        return FilePart(file, data + entry["data_offsets"][0], entry["shape"], dtype)


class MemoryTensors:
    """Tensors that are in memory already."""

    paths: tuple[Path, ...] = ()

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    @contextmanager
    def open(self) -> Iterator[Mapping[str, Part]]:
        yield self.tensors
