"""The contract between what can be added to the stream and the engine that adds it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from steerback.errors import UserError
from steerback.sae.readers import LatentReader


class Source(Protocol):
    """What an intervention's `source` names: an SAE or a vector set."""

    name: str
    d_model: int
    n: int
    """Latents or vectors."""

    def directions(self, indices: Sequence[int]) -> Tensor:
        """[k, d_model] float32: what one unit of each adds; only those rows are held."""
        ...

    def reader(self, indices: Sequence[int] | None) -> LatentReader:
        """f_k for these latents (None: all). Raises UserError where there is no encoder."""
        ...

    def output_scale(self, h: Tensor) -> Tensor | None:
        """[rows, 1]: factor by which a direction enters the stream at h; None is 1 always."""
        ...


class _Wide(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def d_model(self) -> int: ...


def check_width(what: str, source: _Wide, d_model: int) -> None:
    if source.d_model != d_model:
        raise UserError(
            f"{what} '{source.name}' has width {source.d_model}, the model {d_model}: "
            f"{what} width not matching the model; use one trained on this model"
        )


def check_indices(what: str, name: str, indices: Sequence[int], n: int, item: str) -> None:
    for index in indices:
        if not 0 <= index < n:
            raise UserError(
                f"{what} '{name}' has no {item} {index}: it has {n}, numbered 0 to {n - 1}"
            )


def hash_files(paths: Sequence[Path]) -> str:
    """SHA-256 of one file; of several, of the lines `digest  name` sorted by name."""
    digests = {path.name: _hash_file(path) for path in paths}
    if len(digests) == 1:
        return next(iter(digests.values()))
    listing = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
    return hashlib.sha256(listing.encode()).hexdigest()


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and float32 bytes: for tensors that came from no file."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        values = tensors[key].to(torch.float32).contiguous()
        digest.update(f"{key} {list(values.shape)}\n".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
