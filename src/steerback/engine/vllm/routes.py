"""What a `vllm serve` with the plugin answers besides its own API. Imported by vLLM's server alone.

GET  /steerback                  version, layers, slots, sources with their content hashes
POST /steerback/take             {"keys": [...]}: readings that are done, as base64 of float32
PUT  /steerback/sources/NAME     a safetensors file of vectors, for a name that is not taken
"""

from __future__ import annotations

import re
import tempfile
from base64 import b64encode
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from steerback import __version__
from steerback.engine.vllm.plugin import CHECKERS
from steerback.errors import UserError
from steerback.vectors import VectorSet

MOST_BYTES = 64 * 2**20
"""Of an uploaded file."""
MOST_KEYS = 4096
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")


def refusal(error: UserError, status: int = 400) -> JSONResponse:
    return JSONResponse({"error": {"message": str(error), "code": status}}, status)


class Routes:
    """Entry point `vllm.endpoint_plugins`."""

    name = "steerback"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self.client: Any = None
        self.folder = tempfile.TemporaryDirectory(prefix="steerback-")

    def attach_router(self, app: FastAPI) -> None:
        app.add_api_route("/steerback", self.describe, methods=["GET"])
        app.add_api_route("/steerback/take", self.take, methods=["POST"])
        app.add_api_route("/steerback/sources/{name}", self.add, methods=["PUT"])

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        self.client = engine_client

    async def describe(self) -> JSONResponse:
        if not CHECKERS:
            return refusal(UserError("this server was begun without steerback's settings"), 404)
        (checker,) = CHECKERS
        sources = {
            name: {"n": s.n, "d_model": s.d_model, "hash": getattr(s, "content_hash", str)()}
            for name, s in checker.packer.sources.items()
        }
        settings = checker.settings
        return JSONResponse(
            {
                "version": __version__,
                "layers": list(settings.layers),
                "slots": settings.slots,
                "sources": sources,
            }
        )

    async def take(self, request: Request) -> JSONResponse:
        try:
            keys = _keys(await request.body())
        except UserError as error:
            return refusal(error)
        found: dict[str, Any] = {}
        broken: set[str] = set()
        for one in await self.client.collective_rpc("steerback_take", args=(keys,)):
            broken.update(one["broken"])
            found |= {k: [s, b64encode(raw).decode()] for k, (s, raw) in one["found"].items()}
        return JSONResponse({"found": found, "broken": sorted(broken)})

    async def add(self, name: str, request: Request) -> JSONResponse:
        try:
            body = await _body(request)
            place = self._keep(name, body)
        except UserError as error:
            return refusal(error)
        await self.client.collective_rpc("steerback_add", args=(name, str(place)))
        sources: Any = CHECKERS[0].packer.sources
        sources[name] = VectorSet.load(place, name)
        return JSONResponse({"name": name, "n": sources[name].n})

    def _keep(self, name: str, body: bytes) -> Path:
        """The file, once it is known to be what it should. Raises UserError."""
        if not NAME.fullmatch(name):
            raise UserError(f"{name!r:.80} is no name for a file of vectors")
        known = CHECKERS[0].packer.sources
        if name in known:
            raise UserError(f"{name!r} is taken; a name stands for the same directions for good")
        place = Path(self.folder.name) / f"{name}.safetensors"
        place.write_bytes(body)
        try:
            vectors = VectorSet.load(place, name)
            width = next((s.d_model for s in known.values()), vectors.d_model)
            if vectors.d_model != width:
                raise UserError(f"vectors of width {vectors.d_model}, but the model's is {width}")
            if not torch.isfinite(vectors.directions(range(vectors.n))).all():
                raise UserError("a vector has an entry that is not a finite number")
        except UserError as error:
            place.unlink()
            raise UserError(str(error).replace(str(place), name)) from None
        return place


async def _body(request: Request) -> bytes:
    """Read no further than the limit."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MOST_BYTES:
            raise UserError(f"the file is larger than {MOST_BYTES} bytes")
        parts.append(part)
    return b"".join(parts)


def _keys(body: bytes) -> list[str]:
    import json

    try:
        keys = json.loads(body)["keys"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError('the body must be {"keys": [...]}') from None
    if not isinstance(keys, list) or not all(isinstance(k, str) for k in keys):
        raise UserError("keys must be a list of texts")
    if len(keys) > MOST_KEYS:
        raise UserError(f"{len(keys)} keys are too many; at most {MOST_KEYS}")
    return keys
