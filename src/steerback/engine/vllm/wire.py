"""What a request to vLLM carries besides its prompt: one JSON text, checked before it is believed.

    {"key": "...", "first": 12, "seed": 7,
     "draw": {"temperature": 0.6, "top_p": 1, "top_k": 0, "penalty": 1.1},
     "edits": [{"kind": "add", "source": "sae", "index": 3, "value": 9.5, "layer": 10,
                "positions": "generated"}],
     "read": {"source": "sae", "layer": 12, "latents": [1, 2], "pool": "max", "skip": 0}}

Values are in raw units. Nothing here can be executed, and a key that is not known is an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from steerback.engine.base import Pool
from steerback.errors import UserError, nearest
from steerback.types import Intervention, Sampling, stable_hash

KEY = "steerback"
"""Name of the text among a request's extra arguments."""
LONGEST = 2**20
"""Characters that it may have: a reading of all latents by number fits."""
MOST_EDITS = 1024

STREAM = "stream"
"""Pool of a reading that wants the residual stream itself."""


@dataclass(frozen=True)
class Read:
    """Activations that are wanted of a prompt's tokens from `first` + `skip` on."""

    source: str
    """Empty for the stream itself."""
    layer: int
    latents: tuple[int, ...] | None
    """None: all."""
    pool: str
    skip: int = 0


@dataclass(frozen=True)
class Request:
    key: str
    """The sender's own name for it: under which a reading is kept, or noted that logits were no
    numbers, until that is taken."""
    first: int
    """Tokens before the response begins (a prefill belongs to the response)."""
    seed: int = 0
    draw: Sampling | None = None
    """How tokens are drawn; None leaves it to vLLM."""
    edits: tuple[Intervention, ...] = ()
    read: Read | None = None

    def text(self) -> str:
        """As it is sent."""
        out: dict[str, Any] = {"key": self.key, "first": self.first, "seed": self.seed}
        if self.draw is not None:
            d = self.draw
            out["draw"] = {
                "temperature": d.temperature,
                "top_p": d.top_p,
                "top_k": d.top_k,
                "penalty": d.repetition_penalty,
            }
        if self.edits:
            out["edits"] = [{name: getattr(i, name) for name in _EDIT} for i in self.edits]
        if self.read is not None:
            out["read"] = dict(vars(self.read))
        return json.dumps(out, allow_nan=False)

    @property
    def salt(self) -> str | None:
        """What keeps the keys and values of these tokens apart from those of others in a cache of
        prefixes: nobody shares what is read, the unsteered share with all."""
        if self.read is not None:
            return f"read {self.key}"
        if not self.edits:
            return None
        return stable_hash([self.first, [[getattr(i, name) for name in _EDIT] for i in self.edits]])


_EDIT = ("kind", "source", "index", "value", "layer", "positions")
_TYPES: dict[str, dict[str, type]] = {
    "request": {"key": str, "first": int, "seed": int, "draw": dict, "edits": list, "read": dict},
    "draw": {"temperature": float, "top_p": float, "top_k": int, "penalty": float},
    "edit": {
        "kind": str,
        "source": str,
        "index": int,
        "value": float,
        "layer": int,
        "positions": str,
    },
    "read": {
        "source": str,
        "layer": int,
        "latents": list,
        "pool": str,
        "skip": int,
    },
}
_OPTIONAL = {
    "request": ("seed", "draw", "edits", "read"),
    "edit": ("positions",),
    "read": ("skip",),
}


def parse(text: object) -> Request:
    """Raises UserError that says what is wrong with the text."""
    if not isinstance(text, str):
        raise UserError(f"{KEY}: it must be a JSON text, not {type(text).__name__}")
    if len(text) > LONGEST:
        raise UserError(f"{KEY}: {len(text)} characters are too many; at most {LONGEST}")
    try:
        data = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{KEY}: not JSON: {error}") from None
    fields = _checked("request", data)
    edits = fields.get("edits", [])
    if len(edits) > MOST_EDITS:
        raise UserError(f"{KEY}: {len(edits)} edits are too many; at most {MOST_EDITS}")
    if not 0 <= fields["first"] < 2**31 or not 0 <= fields.get("seed", 0) < 2**63:
        raise UserError(f"{KEY}: first and seed count from 0 and fit 31 and 63 bits")
    return Request(
        key=fields["key"],
        first=fields["first"],
        seed=fields.get("seed", 0),
        draw=_draw(fields["draw"]) if "draw" in fields else None,
        edits=tuple(Intervention(**_checked("edit", e)) for e in edits),
        read=_read(fields["read"]) if "read" in fields else None,
    )


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a finite number")


def _checked(what: str, data: Any) -> dict[str, Any]:
    """The fields of one object, each of its type; a whole number passes as a fraction."""
    known = _TYPES[what]
    if not isinstance(data, Mapping):
        raise UserError(f"{KEY}: {what} must be an object, not {type(data).__name__}")
    out: dict[str, Any] = {}
    for name, value in data.items():
        if name not in known:
            raise UserError(f"{KEY}: {what} has no {name!r}; {nearest(str(name), known)}")
        out[name] = _typed(f"{what}.{name}", value, known[name])
    for name in known:
        if name not in out and name not in _OPTIONAL.get(what, ()):
            raise UserError(f"{KEY}: {what} lacks {name!r}")
    return out


def _typed(where: str, value: Any, kind: type) -> Any:
    if where == "read.latents" and value is None:
        return None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**63 else math.inf
    if type(value) is not kind:
        raise UserError(f"{KEY}: {where} is {value!r:.60}; it must be {kind.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{KEY}: {where} is not a finite number")
    return value


def _draw(data: Any) -> Sampling:
    fields = _checked("draw", data)
    return Sampling(
        temperature=fields["temperature"],
        top_p=fields["top_p"],
        top_k=fields["top_k"],
        repetition_penalty=fields["penalty"],
    )


def _read(data: Any) -> Read:
    fields = _checked("read", data)
    latents, pool = fields["latents"], fields["pool"]
    if pool not in (*get_args(Pool), STREAM):
        raise UserError(f"{KEY}: read.pool is {pool!r}; {nearest(pool, (*get_args(Pool), STREAM))}")
    if latents is not None and not all(type(k) is int and k >= 0 for k in latents):
        raise UserError(f"{KEY}: read.latents must be numbers from 0 on")
    if fields.get("skip", 0) < 0 or fields["layer"] < 0:
        raise UserError(f"{KEY}: read.skip and read.layer count from 0")
    whole = None if latents is None else tuple(latents)
    return Read(**{**fields, "latents": whole})


def at_layers(request: Request, layers: Sequence[int]) -> None:
    """Raises UserError unless everything that is asked happens at one of `layers`."""
    asked = [(i.layer, f"edit of {i.source}:{i.index}") for i in request.edits]
    if request.read is not None:
        asked.append((request.read.layer, "read"))
    for layer, what in asked:
        if layer not in layers:
            known = ", ".join(map(str, layers))
            raise UserError(f"{KEY}: {what} at layer {layer}, but vLLM was begun with {known}")
