"""Plain vector sets: directions without an encoder (contrastive vectors, probes, random ones).

A set is one safetensors file: tensor `vectors` [n, d_model], and in its metadata `labels` (a JSON
list of n strings) and `provenance` (a JSON object: how the vectors were made).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from steerback.errors import UserError
from steerback.sae.source import check_indices, check_width, hash_files, hash_tensors
from steerback.sae.tensors import (
    MemoryTensors,
    SafetensorsFile,
    TensorFile,
    find,
    rows,
    whole,
)
from steerback.types import canonical_json


class VectorSet:
    """Vectors by number. From a file, only those asked for are read."""

    def __init__(
        self,
        name: str,
        vectors: Tensor | Path,
        labels: Sequence[str] = (),
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        """vectors: [n, d_model], or a safetensors file of them. labels: n strings, or none."""
        self.name = name
        self.labels = tuple(labels)
        self.provenance = dict(provenance or {})
        self._file: TensorFile = (
            SafetensorsFile(vectors)
            if isinstance(vectors, Path)
            else MemoryTensors({"vectors": vectors})
        )
        self._where = vectors if isinstance(vectors, Path) else f"vector set '{name}'"
        with self._file.open() as parts:
            self.n, self.d_model = _shape(find(parts, "vectors", self._where).shape, self._where)
        if self.labels and len(self.labels) != self.n:
            raise UserError(f"{self._where}: {len(self.labels)} labels for {self.n} vectors")

    @classmethod
    def load(cls, path: str | Path, name: str | None = None) -> VectorSet:
        """Opens a file that `save` wrote. Raises UserError on anything else."""
        path = Path(path).expanduser()
        if not path.is_file():
            raise UserError(f"{path}: no such file; give a safetensors file with tensor 'vectors'")
        with SafetensorsFile(path).open(), safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        labels = _json(metadata, "labels", list, path)
        return cls(name or path.stem, path, labels, _json(metadata, "provenance", dict, path))

    def save(self, path: str | Path) -> None:
        """Writes the set as float32."""
        with self._file.open() as parts:
            vectors = whole(parts["vectors"])
        metadata = {
            "labels": canonical_json(list(self.labels)),
            "provenance": canonical_json(self.provenance),
        }
        # save_file would make a file that nobody else may read
        Path(path).write_bytes(save({"vectors": vectors.contiguous()}, metadata))

    def directions(self, indices: Sequence[int]) -> Tensor:
        """[len(indices), d_model] float32 on the CPU, any order, repeats allowed."""
        check_indices("vector set", self.name, indices, self.n, "vector")
        if not indices:
            return torch.empty(0, self.d_model)
        with self._file.open() as parts:
            return rows(parts["vectors"], indices)

    def reader(self, indices: Sequence[int] | None = None) -> NoReturn:
        """Raises UserError: a vector has no encoder."""
        raise UserError(
            f"'{self.name}' is a vector set, which has no encoder: clamp and watch need an SAE"
        )

    def output_scale(self, h: Tensor) -> None:
        """None: a vector enters the stream as it is."""

    def check_width(self, d_model: int) -> None:
        """Raises UserError unless the model's residual stream has the vectors' width."""
        check_width("vector set", self, d_model)

    def check_lengths(self, indices: Sequence[int]) -> None:
        """Raises UserError for a vector that cannot be steered with: of length 0, or not finite."""
        norms = self.directions(indices).norm(dim=1).tolist()
        for index, norm in zip(indices, norms, strict=True):
            if not 0 < norm < float("inf"):
                raise UserError(
                    f"{self._where}: vector {index} has the length {norm:g}; name the others "
                    "in directions.indices, or make it anew"
                )

    def content_hash(self) -> str:
        """SHA-256 of the file, or of the vectors where there is none."""
        return self._hash

    @cached_property
    def _hash(self) -> str:
        if self._file.paths:
            return hash_files(self._file.paths)
        with self._file.open() as parts:
            return hash_tensors({"vectors": whole(parts["vectors"])})


def _shape(shape: Sequence[int], where: object) -> tuple[int, int]:
    if len(shape) != 2 or 0 in shape:
        raise UserError(f"{where}: 'vectors' has shape {list(shape)}; expected [n, d_model]")
    return shape[0], shape[1]


def _json(metadata: Mapping[str, str], key: str, kind: type, path: Path) -> Any:
    """The JSON value under a metadata key; empty when the key is not there."""
    try:
        value = json.loads(metadata[key]) if key in metadata else kind()
    except ValueError as error:
        raise UserError(f"{path}: metadata '{key}' is not JSON ({error})") from error
    if not isinstance(value, kind):
        raise UserError(f"{path}: metadata '{key}' is not a JSON {kind.__name__}")
    return value
