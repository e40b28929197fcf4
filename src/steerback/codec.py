"""Records to stored values and back, without loss: JSON, packed token ids, packed activations."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from steerback.types import (
    Attempt,
    Calibration,
    Intervention,
    Message,
    Sampling,
    Trace,
    Trial,
    canonical_json,
)


def encode_text(text: str) -> bytes:
    """UTF-8 that lets lone surrogates through: a judge's JSON may hold them."""
    return text.encode("utf-8", "surrogatepass")


def decode_text(data: bytes) -> str:
    """Inverse of `encode_text`."""
    return data.decode("utf-8", "surrogatepass")


def encode_trial(trial: Trial) -> str:
    """The JSON whose hash is `trial.key`."""
    return canonical_json(trial.record())


def decode_trial(text: str) -> Trial:
    """Inverse of `encode_trial`."""
    fields = json.loads(text)
    sampling = fields.pop("sampling")
    sampling["stop"] = tuple(sampling["stop"])
    return Trial(
        messages=tuple(Message(**m) for m in fields.pop("messages")),
        interventions=tuple(Intervention(**i) for i in fields.pop("interventions")),
        sampling=Sampling(**sampling),
        variant=tuple(fields.pop("variant", ())),
        **fields,
    )


def encode_attempts(attempts: Sequence[Attempt]) -> str:
    """`[[start, end, score or null], ...]`."""
    return canonical_json([[a.start, a.end, a.score] for a in attempts])


def decode_attempts(text: str) -> tuple[Attempt, ...]:
    """Inverse of `encode_attempts`."""
    return tuple(Attempt(*row) for row in json.loads(text))


def encode_calibration(calibration: Calibration) -> str:
    """Canonical JSON of the record."""
    return canonical_json(asdict(calibration))


def decode_calibration(text: str) -> Calibration:
    """Inverse of `encode_calibration`."""
    return Calibration(**json.loads(text))


def pack_ids(ids: Sequence[int]) -> bytes:
    """Token ids as little-endian int32. Raises OverflowError outside of that range."""
    return np.asarray(ids, dtype="<i4").tobytes()


def unpack_ids(data: bytes) -> tuple[int, ...]:
    """Inverse of `pack_ids`."""
    return tuple(np.frombuffer(data, dtype="<i4").tolist())


def pack_values(trace: Trace) -> bytes:
    """Activations [n_tokens, n_latents] as compressed float32: most are zero, none is rounded.

    Raises ValueError without latents: there would be nothing to tell the number of tokens from.
    """
    if not trace.latents:
        raise ValueError(f"trace of {trace.source} at layer {trace.layer} has no latents")
    return zlib.compress(np.ascontiguousarray(trace.values, dtype="<f4").tobytes(), level=1)


def unpack_trace(source: str, layer: int, latents: str, data: bytes) -> Trace:
    """Inverse of `pack_values`, with the columns that stand beside it."""
    columns: tuple[int, ...] = tuple(json.loads(latents))
    flat = np.frombuffer(zlib.decompress(data), dtype="<f4").astype(np.float32)
    return Trace(
        source, layer, columns, flat.reshape(-1, len(columns)) if columns else flat[:, None]
    )


def portable(value: Any) -> Any:
    """Text with lone surrogates spelled out (`\\ud800`), for formats that must be valid UTF-8."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
