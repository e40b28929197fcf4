"""What latents are said to stand for: files of labels, here or downloaded once and kept.

A CSV with the columns index_in_sae and label (Goodfire), or Neuronpedia's explanations as JSON or
JSONL; each of them may be gzipped.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from steerback.errors import UserError

NEURONPEDIA = "neuronpedia:"
EXPORTS = "https://neuronpedia-datasets.s3.us-east-1.amazonaws.com/v1"
"""Neuronpedia's public exports: MODEL/SAE/explanations/batch-N.jsonl.gz."""
TIMEOUT_S = 60
ABSENT = (403, 404)
"""What a bucket answers for a batch that it does not have."""


@dataclass(frozen=True)
class Label:
    """What a latent is said to stand for."""

    text: str
    concreteness: float | None = None
    """0-100; None where nobody rated it."""


def read_labels(spec: str | Path, sha256: str | None = None) -> dict[int, Label]:
    """Labels by latent. spec: a file, an https:// address, or `neuronpedia:MODEL/SAE`.

    sha256: hex digest that the file (as downloaded, batches joined) must have. Of several labels of
    one latent the first counts; empty ones are left out. Raises UserError, one line.
    """
    place = _place(str(spec))
    data = _read(place)
    found = hashlib.sha256(data).hexdigest()
    if sha256 and found != sha256.lower():
        raise UserError(
            f"labels: {spec} has the SHA-256 {found}, not {sha256}; it is another file than the one "
            f"meant (of a download, delete {place} to fetch it again)"
        )
    return _parse(place, data)


def digest(spec: str | Path) -> str:
    """SHA-256 of the file that `read_labels` reads."""
    return hashlib.sha256(_read(_place(str(spec)))).hexdigest()


# --- where they lie -----------------------------------------------------------------------------


def cache_folder() -> Path:
    """Downloads are kept below STEERBACK_CACHE, or the user's cache folder."""
    own, user = os.environ.get("STEERBACK_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return (Path(own) if own else Path(user or Path.home() / ".cache") / "steerback") / "labels"


def _place(spec: str) -> Path:
    """The file here; a name or address is downloaded unless it was before."""
    if spec.startswith(NEURONPEDIA):
        model, _, sae = spec.removeprefix(NEURONPEDIA).partition("/")
        if not model or not sae or "/" in sae:
            raise UserError(f"labels: {spec!r}; expected neuronpedia:MODEL/SAE")
        return _kept(f"neuronpedia-{model}-{sae}.jsonl", lambda: _batches(spec, model, sae))
    if urlsplit(spec).scheme in ("http", "https"):
        name = PurePosixPath(urlsplit(spec).path).name
        short = hashlib.sha256(spec.encode()).hexdigest()[:12]
        return _kept(f"{short}-{name}", lambda: _fetch(spec))
    return Path(spec).expanduser()


def _kept(name: str, fetch: Any) -> Path:
    """A download with its checksum beside it; a file that does not match it is fetched again."""
    place = cache_folder() / name
    note = place.with_name(place.name + ".sha256")
    try:
        if note.read_text() == hashlib.sha256(place.read_bytes()).hexdigest():
            return place
    except OSError:
        pass
    data = fetch()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(place.name + f".{os.getpid()}")
        part.write_bytes(data)
        part.replace(place)
        note.write_text(hashlib.sha256(data).hexdigest())
    except OSError as error:
        raise UserError(
            f"labels: cannot write {place} ({error.strerror}); set STEERBACK_CACHE to a folder"
        ) from None
    return place


def _batches(spec: str, model: str, sae: str) -> bytes:
    """All batches of an export, joined."""
    joined = []
    for number in count():
        url = f"{EXPORTS}/{model}/{sae}/explanations/batch-{number}.jsonl.gz"
        try:
            joined.append(_unpacked(url, _fetch(url)).rstrip(b"\n"))
        except FileNotFoundError:
            break
    if not joined:
        raise UserError(f"labels: Neuronpedia has no export for {spec!r}; check the two names")
    return b"\n".join(joined) + b"\n"


def _fetch(url: str) -> bytes:
    remedy = "download the file elsewhere and give its path as directions.labels"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            data: bytes = answer.read()
    except urllib.error.HTTPError as error:
        if url.startswith(EXPORTS) and error.code in ABSENT:
            raise FileNotFoundError(url) from None
        raise UserError(f"labels: {url} answers {error.code} {error.reason}; {remedy}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"labels: cannot reach {url} ({reason}); {remedy}") from None
    return data


# --- what they say ------------------------------------------------------------------------------


def _read(place: Path) -> bytes:
    try:
        return place.read_bytes()
    except OSError as error:
        raise UserError(f"labels: {place} cannot be read ({error.strerror})") from None


def _unpacked(name: str, data: bytes) -> bytes:
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{name}: not a whole gzip file ({error}); download it again") from None


def _parse(place: Path, data: bytes) -> dict[int, Label]:
    name = place.name.removesuffix(".gz").lower()
    if place.suffix == ".gz":
        data = _unpacked(str(place), data)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{place}:{line}: not UTF-8; save the file as UTF-8") from None
    read = _json if name.endswith(".json") else _jsonl if name.endswith(".jsonl") else _csv
    found: dict[int, Label] = {}
    for index, label in read(place, text):
        if label.text.strip():
            found.setdefault(index, label)
    if not found:
        raise UserError(f"{place}: holds no label")
    return found


def _csv(place: Path, text: str) -> Iterator[tuple[int, Label]]:
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise UserError(f"{place}: cannot be read as a CSV file of labels ({error})") from None
    if not rows or not {"index_in_sae", "label"} <= set(rows[0]):
        found = ", ".join(rows[0]) if rows else "no rows"
        raise UserError(f"{place}: needs the columns index_in_sae and label; it has {found}")
    for line, row in enumerate(rows, start=2):
        yield _row(place, line, row)


def _row(place: Path, line: int, row: Mapping[str, str]) -> tuple[int, Label]:
    rated = row.get("concreteness")
    index = _number(place, line, "index_in_sae", row["index_in_sae"], int, "a whole number")
    rating = _number(place, line, "concreteness", rated, float, "a number") if rated else None
    return int(index), Label(row["label"] or "", rating)


def _number(
    place: Path, line: int, column: str, said: str | None, kind: type[float], what: str
) -> float:
    try:
        return kind(said or "")
    except ValueError:
        raise UserError(f"{place}, line {line}: {column} is {said!r}; write {what}") from None


def _json(place: Path, text: str) -> Iterator[tuple[int, Label]]:
    """A list of explanations, or an object that holds one under any name."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}:{error.lineno}: not JSON ({error.msg})") from None
    if isinstance(data, Mapping):
        data = next((v for v in data.values() if isinstance(v, list)), data)
    if not isinstance(data, list):
        raise UserError(f"{place}: holds no list of explanations")
    return _explanations((f"{place}, entry {n}", entry) for n, entry in enumerate(data, 1))


def _jsonl(place: Path, text: str) -> Iterator[tuple[int, Label]]:
    def entries() -> Iterator[tuple[str, Any]]:
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    yield f"{place}:{number}", json.loads(line)
                except json.JSONDecodeError as error:
                    raise UserError(f"{place}:{number}: not JSON ({error.msg})") from None

    return _explanations(entries())


def _explanations(entries: Iterable[tuple[str, Any]]) -> Iterator[tuple[int, Label]]:
    return (_explanation(where, entry) for where, entry in entries)


def _explanation(where: str, entry: Any) -> tuple[int, Label]:
    try:
        return int(entry["index"]), Label(str(entry["description"] or ""))
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f'{where}: needs a whole number "index" and a text "description", as Neuronpedia '
            "exports them"
        ) from None
