"""An engine whose model is behind a `vllm serve` that has the plugin (`steerback serve`)."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import numpy as np
from numpy.typing import NDArray

from steerback.engine.facts import Facts
from steerback.engine.places import Place
from steerback.engine.vllm import wire
from steerback.engine.vllm.asking import Ask, AskingEngine
from steerback.errors import UserError
from steerback.sae import Source

SECONDS = 3600.0
"""In which one response must come."""


class ServedEngine(AskingEngine):
    """Trials as requests to a server, twice as many at a time as it has slots."""

    def __init__(
        self,
        address: str,
        facts: Facts,
        *,
        name: str,
        sources: Mapping[str, Source],
        places: Mapping[str, Place],
    ) -> None:
        """sources and places by name: the server must have the same ones, and is sent files of vectors
        that it lacks. UserError if it is not there, or has others."""
        self.address = address.rstrip("/")
        said = self._call("GET", "/steerback")
        self._version = self._call("GET", "/version")["version"]
        self._model = self._call("GET", "/v1/models")["data"][0]["id"]
        self._attach(facts, name, said["slots"], said["layers"], list(sources.values()))
        for known, source in sources.items():
            self._agree(known, source, places[known], said["sources"])
        self._pool = ThreadPoolExecutor(max_workers=2 * self.slots)
        self._flying: dict[Future[list[int]], str] = {}

    @property
    def kind(self) -> str:
        return f"vllm {self._version}, served"

    def close(self) -> None:
        self._abort(list(self._flying.values()))
        self._pool.shutdown()

    def _agree(
        self, name: str, source: Source, place: Place, there: Mapping[str, Mapping[str, Any]]
    ) -> None:
        own = getattr(source, "content_hash", str)()
        if name in there:
            if there[name]["hash"] != own:
                raise UserError(
                    f"{self.address} has other directions under the name {name!r} than this run; "
                    "serve it with this run's configuration"
                )
        elif place.kind == "vectors":
            self._call("PUT", f"/steerback/sources/{name}", Path(place.where).read_bytes())
        else:
            raise UserError(f"{self.address} has no SAE {name!r}; serve this run's configuration")

    # --- the transport --------------------------------------------------------------------------

    def _send(self, ask: Ask) -> str:
        body = {
            "model": self._model,
            "prompt": list(ask.ids),
            "max_tokens": ask.most,
            "temperature": 0.0,
            "seed": ask.request.seed,
            "ignore_eos": True,
            "stop_token_ids": sorted(self.eos),
            "stop": list(ask.stop) or None,
            "return_token_ids": True,
            "cache_salt": ask.request.salt,
            "vllm_xargs": {wire.KEY: ask.request.text()},
        }
        self._flying[self._pool.submit(self._complete, body)] = ask.request.key
        return ask.request.key

    def _complete(self, body: dict[str, Any]) -> list[int]:
        given = {name: value for name, value in body.items() if value is not None}
        said = self._call("POST", "/v1/completions", json.dumps(given).encode())
        ids: list[int] = said["choices"][0]["token_ids"]
        return ids

    def _step(self) -> dict[str, list[int]]:
        done, _ = wait(self._flying, return_when=FIRST_COMPLETED)
        return {self._flying.pop(future): future.result() for future in done}

    def _take(self, keys: list[str]) -> tuple[dict[str, NDArray[np.float32]], set[str]]:
        if not keys:
            return {}, set()
        said = self._call("POST", "/steerback/take", json.dumps({"keys": keys}).encode())
        found = {
            key: np.frombuffer(b64decode(raw), np.float32).reshape(shape)
            for key, (shape, raw) in said["found"].items()
        }
        return found, set(said["broken"])

    def _abort(self, keys: list[str]) -> None:
        for future in [f for f, key in self._flying.items() if key in keys]:
            future.cancel()
            del self._flying[future]

    def _call(self, method: str, path: str, body: bytes | None = None) -> Any:
        kind = "application/octet-stream" if method == "PUT" else "application/json"
        request = Request(
            self.address + path, data=body, method=method, headers={"Content-Type": kind}
        )
        try:
            with urlopen(request, timeout=SECONDS) as response:
                return json.load(response)
        except HTTPError as error:
            raise UserError(f"{self.address}{path}: {_message(error)}") from None
        except (URLError, OSError, ValueError) as error:
            raise UserError(
                f"{self.address} does not answer ({error}); start it with: steerback serve CONFIG"
            ) from None


def _message(error: HTTPError) -> str:
    """What the server says is wrong."""
    try:
        said = json.loads(error.read())
        return str(said["error"]["message"])
    except (ValueError, KeyError, TypeError):
        remedy = "; is it a `steerback serve`?" if error.code == 404 else ""
        return f"HTTP {error.code}{remedy}"
