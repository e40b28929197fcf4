"""`.npz` archives read in parts, without pickle.

Each member is a NumPy array after a short header. A stored member is read at its place in the
file; a deflated one is inflated as a stream, and only as far as the last row that is wanted.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BufferedReader
from math import prod
from pathlib import Path
from types import EllipsisType
from typing import IO, Any

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from steerback.errors import UserError
from steerback.sae.tensors import FilePart, Part, from_bytes

CHUNK = 1 << 20
DAMAGE = (zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError)


class NpzFile:
    """One `.npz` file."""

    def __init__(self, path: Path) -> None:
        self.paths = (path,)

    @contextmanager
    def open(self) -> Iterator[Mapping[str, Part]]:
        path = self.paths[0]
        with path.open("rb") as file:
            try:
                archive = zipfile.ZipFile(file)
                parts = {
                    member.filename.removesuffix(".npy"): _part(file, archive, member)
                    for member in archive.infolist()
                }
            except DAMAGE as error:
                raise UserError(
                    f"{path}: not a whole npz file ({error}); download it again"
                ) from error
            yield parts


def _part(file: BufferedReader, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Part:
    where = f"{file.name}: '{member.filename}'"
    with archive.open(member) as stream:
        shape, fortran, dtype = _header(stream, where)
        at = stream.tell()
    if fortran or not dtype.isnative:
        return _Whole(archive, member, shape, where)
    kind = torch.from_numpy(np.empty(0, dtype)).dtype
    if member.compress_type == zipfile.ZIP_STORED:
        return FilePart(file, _start(file, member) + at, shape, kind)
    return _Stream(archive, member, at, shape, kind, where)


def _header(stream: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise UserError(f"{where} holds Python objects, which only pickle could read: refused")
    if dtype.kind != "f":
        raise UserError(f"{where} has dtype {dtype}; expected floating point")
    return shape, fortran, dtype


def _start(file: BufferedReader, member: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes begin: after its local header, whose length varies."""
    file.seek(member.header_offset + 26)
    name, extra = np.frombuffer(file.read(4), "<u2")
    return member.header_offset + 30 + int(name) + int(extra)


class _Whole:
    """An array in column order, as numpy writes a transposed one: read whole when it is used."""

    def __init__(
        self, archive: zipfile.ZipFile, member: zipfile.ZipInfo, shape: Sequence[int], where: str
    ) -> None:
        self.archive, self.member, self.where = archive, member, where
        self.shape = shape
        self.array: Tensor | None = None

    def __getitem__(self, rows: slice | EllipsisType, /) -> Tensor:
        if self.array is None:
            try:
                with self.archive.open(self.member) as stream:
                    array = npy.read_array(stream, allow_pickle=False)
            except DAMAGE as error:
                raise _damaged(self.where, error) from error
            self.array = torch.from_numpy(array.astype(np.float32, order="C"))
        return self.array[rows]


class _Stream:
    """A deflated member: rows in ascending order, or from the start again."""

    def __init__(
        self,
        archive: zipfile.ZipFile,
        member: zipfile.ZipInfo,
        at: int,
        shape: Sequence[int],
        dtype: torch.dtype,
        where: str,
    ) -> None:
        self.archive, self.member, self.at, self.where = archive, member, at, where
        self.shape, self.dtype = shape, dtype
        self.stream: IO[bytes] | None = None

    def __getitem__(self, rows: slice | EllipsisType, /) -> Tensor:
        if not isinstance(rows, slice):
            return self._read(0, self.shape)
        row = prod(self.shape[1:])
        return self._read(rows.start * row, (rows.stop - rows.start, *self.shape[1:]))

    def _read(self, first: int, shape: Sequence[int]) -> Tensor:
        size = self.dtype.itemsize
        try:
            raw = self._bytes(self.at + first * size, prod(shape) * size)
        except DAMAGE as error:
            raise _damaged(self.where, error) from error
        return from_bytes(raw, shape, self.dtype)

    def _bytes(self, at: int, count: int) -> bytearray:
        if self.stream is None or self.stream.tell() > at:
            self.stream = self.archive.open(self.member)
        while (left := at - self.stream.tell()) > 0:
            self._some(min(CHUNK, left))
        raw = bytearray()
        while len(raw) < count:
            raw += self._some(min(CHUNK, count - len(raw)))
        return raw

    def _some(self, count: int) -> bytes:
        assert self.stream is not None
        piece = self.stream.read(count)
        if not piece:
            raise EOFError("it ends early")
        return piece


def _damaged(where: str, error: Exception) -> UserError:
    return UserError(f"{where} is damaged ({error}); download it again")
