"""Goodfire: a PyTorch state dict of one encoder and one decoder layer (`.pth`, `.pt`), ReLU.

Loaded with `weights_only=True`: a file that needs to run code is refused. The zip format that
torch has written since 1.6 is memory-mapped; the older format is read whole, then dropped.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from steerback.errors import UserError
from steerback.sae.spec import Matrix, SaeSpec
from steerback.sae.tensors import Part, find

SUFFIXES = (".pth", ".pt")
ENCODER, DECODER = "encoder_linear.weight", "decoder_linear.weight"


def recognise(path: Path) -> Path | None:
    if path.is_file():
        return path if path.suffix in SUFFIXES else None
    files = [file for file in sorted(path.iterdir()) if file.suffix in SUFFIXES]
    return files[0] if len(files) == 1 else None


def read(path: Path) -> SaeSpec:
    file = TorchFile(path)
    with file.open() as parts:
        shape = find(parts, ENCODER, path).shape
    if len(shape) != 2:
        raise UserError(f"{path}: '{ENCODER}' has shape {list(shape)}; expected [n, d_model]")
    return SaeSpec(
        file=file,
        where=str(path),
        d_model=shape[1],
        n=shape[0],
        architecture="relu",
        W_enc=Matrix(ENCODER, transposed=True),
        W_dec=Matrix(DECODER, transposed=True),
        b_enc="encoder_linear.bias",
        layer=_layer(path),
    )


class TorchFile:
    """One file that `torch.save` wrote of a flat dict of tensors."""

    def __init__(self, path: Path) -> None:
        self.paths = (path,)

    @contextmanager
    def open(self) -> Iterator[Mapping[str, Part]]:
        path = self.paths[0]
        try:
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
        except pickle.UnpicklingError as error:
            _refuse(path, error)
        except (RuntimeError, EOFError, OSError, ValueError) as error:
            raise UserError(
                f"{path}: not a whole PyTorch file ({_line(error)}); download it again"
            ) from error
        yield _tensors(path, content)


def _refuse(path: Path, error: pickle.UnpicklingError) -> NoReturn:
    needs = re.search(r"GLOBAL (\S+)", str(error))
    if needs is None:
        raise UserError(
            f"{path}: not a PyTorch file of plain tensors ({_line(error)}); download it again"
        ) from error
    raise UserError(
        f"{path}: refused: it is a pickle that calls {needs[1]}, which could run any code; "
        "ask its author for safetensors or a plain state dict"
    ) from error


def _tensors(path: Path, content: Any) -> dict[str, Tensor]:
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a dict of tensors")
    other = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if other:
        raise UserError(f"{path}: entries that are not tensors: {', '.join(other[:5])}")
    return {str(key): value for key, value in content.items()}


def _line(error: Exception) -> str:
    """An error's first line: torch explains itself over many."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _layer(path: Path) -> int | None:
    match = re.search(r"[-_]l(?:ayer)?[-_]?(\d+)(?!\d)", path.stem, re.IGNORECASE)
    return int(match[1]) if match else None
