"""A `steerback serve` and runs against it. Needs vLLM in the environment: `make test-vllm`."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import torch

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed here; `make test-vllm` runs these", allow_module_level=True)

import numpy as np
from runs import small
from safetensors.torch import save_file

from steerback import organism
from steerback.engine.base import Pair, Watch
from steerback.engine.shared import SharedEngine
from steerback.engine.vllm import wire
from steerback.errors import UserError
from steerback.lab import load_engine
from steerback.presets import dump_commented
from steerback.protocols import settings
from steerback.types import Generation, Intervention, Message, Sampling, Trial
from steerback.vectors import VectorSet

LAYER = organism.steer_layer("resister")
SECONDS = 120


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    config = small(folder / "run", engine={"eager": True, "memory": 0.1})
    (folder / "run.toml").write_text(dump_commented(config, settings()))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [sys.executable, "-m", "steerback.cli", "serve", str(folder / "run.toml")]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [*line, "--port", str(port)], stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield wait_for(f"http://127.0.0.1:{port}", server, folder / "log")
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def wait_for(place: str, server: subprocess.Popen[bytes], log: Path) -> str:
    for _ in range(SECONDS * 2):
        time.sleep(0.5)
        if server.poll() is not None:
            break
        try:
            with urlopen(f"{place}/health", timeout=2):
                return place
        except OSError:
            continue
    raise AssertionError(f"the server did not start: {log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def both(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[SharedEngine]]:
    folder = tmp_path_factory.mktemp("engines")
    engines = [load_engine(small(folder, engine={"kind": k}), 8)[0] for k in ("hf", address)]
    yield engines
    engines[1].close()


def trials(n: int, **sampling: Any) -> list[Trial]:
    adds = [
        Intervention("add", "sae", 3, 9.0, LAYER),
        Intervention("clamp", "sae", 5, 0.0, LAYER),
        Intervention("add", "sae", 9, 4.0, LAYER, positions="all"),
    ]
    asked = [q.text for q in organism.questions()[:n]]
    return [
        Trial(
            "test",
            "",
            "m",
            q,
            (Message("user", q),),
            Sampling(max_new_tokens=24, **sampling),
            seed=i,
            interventions=tuple(adds[: i % 4]),
        )
        for i, q in enumerate(asked)
    ]


def said(engine: SharedEngine, todo: list[Trial], **more: Any) -> list[Generation]:
    made = {g.trial_key: g for g in engine.generate(todo, **more)}
    return [made[t.key] for t in todo]


def test_served_trials_say_the_same(both: list[SharedEngine]) -> None:
    for sampling in ({"temperature": 0.0}, {"temperature": 0.7}, {"stop": ("the",)}):
        ours, theirs = (said(e, trials(32, **sampling)) for e in both)
        assert theirs == ours
    watch = Watch("sae", LAYER, (3, 5))
    for a, b in zip(*(said(e, trials(8), watch=watch) for e in both), strict=True):
        assert a.trace is not None
        assert b.trace is not None
        np.testing.assert_allclose(b.trace.values, a.trace.values, rtol=1e-4, atol=1e-3)
    pairs = [Pair(g.prompt_ids, g.token_ids) for g in said(both[0], trials(8))]
    one, two = (e.read(pairs, source="sae", layer=LAYER) for e in both)
    for x, y in zip(one, two, strict=True):
        np.testing.assert_allclose(y.values, x.values, rtol=1e-4, atol=1e-3)


def call(place: str, method: str, path: str, body: bytes | None = None) -> tuple[int, str]:
    request = Request(place + path, body, {"Content-Type": "application/json"}, method=method)
    try:
        with urlopen(request, timeout=60) as response:
            return response.status, response.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def complete(place: str, extra: dict[str, Any], **more: Any) -> tuple[int, str]:
    model = json.loads(call(place, "GET", "/v1/models")[1])["data"][0]["id"]
    body = {"model": model, "prompt": [5, 6, 7], "max_tokens": 4, "vllm_xargs": extra, **more}
    return call(place, "POST", "/v1/completions", json.dumps(body).encode())


EDIT = {"kind": "add", "source": "sae", "index": 1, "value": 1.0, "layer": LAYER}


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        ({"index": 10**9}, "no latent"),
        ({"index": -1}, "count from 0"),
        ({"source": "other"}, "unknown SAE or vector set"),
        ({"source": "../../etc/passwd"}, "unknown SAE or vector set"),
        ({"value": "1.0"}, "must be float"),
        ({"value": float("nan")}, "not a finite number"),
        ({"layer": LAYER + 50}, "at layer"),
        ({"kind": "exec"}, "kind is"),
        ({"code": "print()"}, "no 'code'"),
    ],
)
def test_a_hostile_request_is_refused_alone(
    address: str, both: list[SharedEngine], edit: dict[str, Any], line: str
) -> None:
    text = json.dumps({"key": "a", "first": 1, "edits": [{**EDIT, **edit}]})
    status, answer = complete(address, {wire.KEY: text})
    assert status == 400
    assert line in answer
    todo = trials(4, temperature=0.0)
    assert said(both[1], todo) == said(both[0], todo)


def test_other_hostile_requests_are_refused_alone(
    address: str, both: list[SharedEngine], tmp_path: Path
) -> None:
    good = wire.Request("a", 1).text()
    assert complete(address, {wire.KEY: good})[0] == 200
    for extra in (
        {wire.KEY: "\x80\x04K."},
        {wire.KEY: "[" * 9999},
        {wire.KEY: 7},
        {"steerbak": good},
    ):
        assert complete(address, extra)[0] == 400
    overflow = [{**EDIT, "value": 3e38}] * 2
    text = json.dumps({"key": "o", "first": 0, "seed": 1, "edits": overflow})
    complete(address, {wire.KEY: text})
    for body in (b"", b"{}", b'{"keys": 3}', b'{"keys": [3]}', b"\x80\x04K."):
        assert call(address, "POST", "/steerback/take", body)[0] == 400
    width = 0
    for name, source in both[0].sources.items():
        width = source.d_model
        assert call(address, "PUT", f"/steerback/sources/{name}", b"x")[0] == 400
    files = {
        "pickle": b"\x80\x04K\x01.",
        "huge": b"\0" * (64 * 2**20 + 1),
        "lies": (2**60).to_bytes(8, "little") + b"{}",
    }
    for what, vectors in (
        ("narrow", torch.zeros(2, width - 1)),
        ("nan", torch.full((2, width), torch.nan)),
    ):
        save_file({"vectors": vectors}, tmp_path / what)
        files[what] = (tmp_path / what).read_bytes()
    for what, body in files.items():
        assert call(address, "PUT", f"/steerback/sources/{what}", body)[0] == 400, what
    save_file({"vectors": torch.eye(2, width)}, tmp_path / "good")
    body = (tmp_path / "good").read_bytes()
    assert call(address, "PUT", "/steerback/sources/..%2Fx", body)[0] in (400, 404)
    assert call(address, "PUT", "/steerback/sources/good", body)[0] == 200
    assert call(address, "PUT", "/steerback/sources/good", body)[0] == 400
    known = json.loads(call(address, "GET", "/steerback")[1])["sources"]
    assert set(known) == {"sae", "good"}
    for engine in both:
        if "good" not in engine.sources:
            engine.add_source(VectorSet.load(tmp_path / "good", "good"))
    steered = [
        Trial(
            **{
                **{f: getattr(t, f) for f in Trial.__dataclass_fields__},
                "interventions": (Intervention("add", "good", 1, 9.0, LAYER),),
            }
        )
        for t in trials(4, temperature=0.0)
    ]
    assert said(both[1], steered) == said(both[0], steered)


def test_a_server_that_is_not_ours_is_said(address: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not answer"):
        load_engine(small(tmp_path, engine={"kind": "http://127.0.0.1:9"}), 8)
    with pytest.raises(UserError, match="other directions under the name"):
        load_engine(small(tmp_path, organism="naive", engine={"kind": address}), 8)
