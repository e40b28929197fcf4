"""Labels from every format they are published in, and from a server that is asked once."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from steerback import labels
from steerback.errors import UserError
from steerback.labels import Label, read_labels

EXPLAINED = [
    {"modelId": "m", "layer": "3-res", "index": "4", "description": "boats", "id": "x"},
    {"modelId": "m", "layer": "3-res", "index": 9, "description": "tax forms"},
    {"modelId": "m", "layer": "3-res", "index": "4", "description": "a later word on boats"},
    {"modelId": "m", "layer": "3-res", "index": "5", "description": ""},
]
WANTED = {4: Label("boats"), 9: Label("tax forms")}
LINES = "".join(json.dumps(e) + "\n" for e in EXPLAINED)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("labels.json", json.dumps(EXPLAINED).encode()),
        ("labels.json", json.dumps({"explanations": EXPLAINED, "n": 4}).encode()),
        ("labels.jsonl", LINES.encode()),
        ("labels.jsonl", ("\ufeff" + LINES + "\n").encode()),
        ("labels.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)),
        ("labels.csv", b"index_in_sae,label,uuid\n4,boats,u\n9,tax forms,v\n5,,w\n4,again,z\n"),
        ("labels.csv.gz", gzip.compress(b"index_in_sae,label\n4,boats\n9,tax forms\n", mtime=0)),
    ],
)
def test_every_format_gives_the_same_labels(tmp_path: Path, name: str, data: bytes) -> None:
    file = tmp_path / name
    file.write_bytes(data)
    assert read_labels(file) == WANTED
    digest = hashlib.sha256(data).hexdigest()
    assert labels.digest(file) == digest
    assert read_labels(file, digest.upper()) == WANTED
    with pytest.raises(UserError, match="another file than the one meant"):
        read_labels(file, "0" * 64)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.json", b"[1,", r"a.json:1: not JSON"),
        ("a.json", b'{"a": 1}', "holds no list of explanations"),
        ("a.json", b"[]", "holds no label"),
        ("a.json", b'[{"index": 1}]', 'entry 1: needs a whole number "index"'),
        ("a.jsonl", b'{"index": 1, "description": "a"}\n{"index": "x"}\n', "a.jsonl:2: needs"),
        ("a.jsonl", b"{}\n{\n", "a.jsonl:1: needs"),
        ("a.jsonl", b'{"index": 1, "description": "\xff"}', "a.jsonl:1: not UTF-8"),
        ("a.jsonl.gz", b"no gzip", "not a whole gzip file"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=says) as caught:
        read_labels(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, list[str]]]:
    """A folder behind a loopback server in Neuronpedia's place, and what was asked of it."""
    folder, asked = tmp_path / "bucket", list[str]()
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(labels, "EXPORTS", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("STEERBACK_CACHE", str(tmp_path / "cache"))
    yield folder, asked
    server.shutdown()
    server.server_close()


def test_an_export_is_downloaded_once_with_all_its_batches(
    bucket: tuple[Path, list[str]],
) -> None:
    folder, asked = bucket
    place = folder / "m" / "3-res" / "explanations"
    place.mkdir(parents=True)
    for n, entries in enumerate((EXPLAINED[:1], EXPLAINED[1:])):
        lines = "\n".join(map(json.dumps, entries))
        (place / f"batch-{n}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    assert read_labels("neuronpedia:m/3-res") == WANTED
    assert len(asked) == 3
    assert read_labels("neuronpedia:m/3-res") == WANTED
    assert len(asked) == 3

    [kept] = labels.cache_folder().glob("*.jsonl")
    kept.write_text('{"index": 4, "description": "spoilt"}\n')
    assert read_labels("neuronpedia:m/3-res") == WANTED
    assert len(asked) == 6


def test_an_address_is_kept_too(bucket: tuple[Path, list[str]]) -> None:
    folder, asked = bucket
    (folder / "own.csv").write_text("index_in_sae,label\n4,boats\n9,tax forms\n")
    url = f"{labels.EXPORTS}/own.csv"
    assert read_labels(url) == read_labels(url) == WANTED
    assert len(asked) == 1


def test_what_is_not_there_and_what_cannot_be_reached(
    bucket: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="Neuronpedia has no export for 'neuronpedia:m/none'"):
        read_labels("neuronpedia:m/none")
    with pytest.raises(UserError, match="expected neuronpedia:MODEL/SAE"):
        read_labels("neuronpedia:m")
    monkeypatch.setattr(labels, "EXPORTS", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"cannot reach .* give its path as directions.labels"):
        read_labels("neuronpedia:m/3-res")
    monkeypatch.setenv("STEERBACK_CACHE", "/dev/null/no")
    with pytest.raises(UserError, match="cannot reach"):
        read_labels("https://127.0.0.1:9/labels.csv")
