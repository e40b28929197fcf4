"""Which engine runs: what is asked for, and one line where it cannot be had."""

from __future__ import annotations

import json
import shlex
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest
from runs import small
from typer.testing import CliRunner

from steerback.cli import app
from steerback.config import FREE_KEYS
from steerback.engine.choice import in_process, layers_of
from steerback.engine.hf import HFEngine
from steerback.engine.shared import SharedEngine
from steerback.engine.vllm import launch
from steerback.engine.vllm.settings import Settings
from steerback.errors import UserError
from steerback.lab import load_engine, serving
from steerback.mappings import diff
from steerback.presets import placed
from steerback.run import run
from steerback.store import Store
from steerback.ui import Ui


def test_the_flag_wins_over_the_file_and_may_differ_on_resume(tmp_path: Path) -> None:
    config = small(tmp_path)
    assert config.engine.kind == "hf"
    other = placed(config, None, None, "ray")
    assert other.engine.kind == "ray"
    assert diff(config.model_dump(), other.model_dump(), FREE_KEYS) == []
    with pytest.raises(UserError, match=r"engine\.kind"):
        placed(config, None, None, "onnx")


@pytest.mark.parametrize(
    ("kind", "line", "package"),
    [
        ("vllm", r"pip install 'steerback\[vllm\]'", "vllm"),
        ("ray", r"pip install 'steerback\[ray\]'", "ray"),
        ("http://127.0.0.1:9", "does not answer", ""),
    ],
)
def test_an_engine_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, line: str, package: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if package and find_spec(package):
        pytest.skip(f"{package} is installed here")
    with pytest.raises(UserError, match=line):
        load_engine(small(tmp_path, engine={"kind": kind}), 8)
    said = CliRunner().invoke(app, ["run", "organism-resister", "--engine", kind])
    assert isinstance(said.exception, UserError)


def test_the_published_codes_ways_stay_in_process(tmp_path: Path) -> None:
    config = small(tmp_path, switches=["mlp-site"], engine={"kind": "ray"})
    with pytest.raises(UserError, match="published code's ways"):
        load_engine(config, 8)


def test_what_needs_weights_takes_no_other_engine(tmp_path: Path) -> None:
    engine, _ = load_engine(small(tmp_path), 8)
    assert isinstance(in_process(engine), HFEngine)

    class Elsewhere(SharedEngine):
        kind = "vllm 0"

    with pytest.raises(UserError, match="not vllm 0; use"):
        in_process(Elsewhere())


def test_a_run_that_changes_engines_says_so(tmp_path: Path) -> None:
    heard: list[str] = []

    class Heard(Ui):
        def say(self, line: str) -> None:
            heard.append(line)

    config = small(tmp_path / "run")
    run(config, Heard())
    run(config, Heard())
    assert not [line for line in heard if "goes on with" in line]
    with Store.open(config.place, config.model_dump(mode="json")) as store:
        store.note(engine="vllm 0.32.0")
    run(config, Heard())
    assert "made with fused, vllm 0.32.0 so far; it goes on with fused" in heard


def test_the_servers_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "prepare", lambda: None)
    config = small(tmp_path, engine={"layers": [1], "eager": True, "tensor_parallel": 2})
    line = serving(config)
    given = json.loads(line[line.index("--additional-config") + 1])
    found = type("C", (), {"additional_config": given})()
    found.use_v2_model_runner, found.speculative_config = False, None
    found.parallel_config = type("P", (), {"use_ubatching": False})
    settings = Settings.of(found)
    assert settings is not None
    assert settings.layers == layers_of(config)
    assert 1 in settings.layers
    here = load_engine(small(tmp_path), 4)[0]
    assert settings.sources().keys() == here.sources.keys()
    assert line[line.index("--tensor-parallel-size") + 1] == "2"
    assert "--enforce-eager" in line
    assert all(isinstance(word, str) for word in line)
    said = CliRunner().invoke(app, ["serve", "organism-resister", "--port", "81", "--show"])
    assert shlex.split(said.stdout)[-4:] == ["--host", "127.0.0.1", "--port", "81"]


@pytest.fixture
def stranger() -> Iterator[str]:
    """A server that answers, but is none of ours."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_server_without_the_plugin_never_passes_as_steered(tmp_path: Path, stranger: str) -> None:
    with pytest.raises(UserError, match="is it a `steerback serve`"):
        load_engine(small(tmp_path, engine={"kind": stranger}), 8)
