"""Gemma Scope: one `params.npz` per SAE (Lieberum et al. 2024), JumpReLU, float32.

The input is not centred. The layer stands in the path, as in `layer_16/width_16k/.../params.npz`.
"""

from __future__ import annotations

import re
from pathlib import Path

from steerback.errors import UserError
from steerback.sae.npz import NpzFile
from steerback.sae.spec import Matrix, SaeSpec
from steerback.sae.tensors import find, whole

PARAMS = "params.npz"


def recognise(path: Path) -> Path | None:
    file = path / PARAMS if path.is_dir() else path
    return file if file.suffix == ".npz" and file.is_file() else None


def read(path: Path) -> SaeSpec:
    _check_kind(path)
    file = NpzFile(path)
    with file.open() as parts:
        # A few of the published files spell the matrices in lower case.
        encoder = "w_enc" if "w_enc" in parts else "W_enc"
        decoder = "w_dec" if "w_dec" in parts else "W_dec"
        shape = find(parts, encoder, path).shape
        if len(shape) != 2:
            raise UserError(f"{path}: '{encoder}' has shape {list(shape)}; expected [d_model, n]")
        scaling = parts.get("scaling_factor")
        if scaling is not None and not bool((whole(scaling) == 1).all()):
            raise UserError(f"{path}: 'scaling_factor' rescales what is decoded, which is not read")
    return SaeSpec(
        file=file,
        where=str(path),
        d_model=shape[0],
        n=shape[1],
        architecture="jumprelu",
        W_enc=Matrix(encoder),
        W_dec=Matrix(decoder),
        layer=_layer(path),
    )


def _check_kind(path: Path) -> None:
    parts = [part.lower() for part in path.absolute().parts]
    for word, what in (("transcoder", "a transcoder"), ("embedding", "an SAE of the embedding")):
        if any(word in part for part in parts[-5:]):
            raise UserError(
                f"{path}: this looks like {what}, not an SAE of a layer's output; "
                "if it is one, move it to a folder not named so"
            )


def _layer(path: Path) -> int | None:
    match = re.search(r"layer_(\d+)", str(path.absolute()))
    return int(match[1]) if match else None
