"""The published code's result files: one JSON object, or one trial per line (JSONL).

A JSON file holds `experiment_config` and `results_by_feature`, each latent with its `trials`; the
variants add `boost_levels` (several strengths), `ablated_latents` or `experiment_metadata`
(meta-prompts).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerback.errors import UserError

KNOWN = {
    "prompt",
    "feature_index_in_sae",
    "feature_label",
    "threshold",
    "seed",
    "response",
    "score",
    "error",
}
"""Fields of a trial."""


@dataclass(frozen=True)
class Row:
    """One trial as it stands in a file."""

    where: str
    prompt: str
    index: int
    label: str
    strength: float
    seed: int
    response: str
    score: Any
    error: str
    extra: dict[str, Any]
    """Fields that are not known here."""


@dataclass(frozen=True)
class ResultFile:
    """A file's trials, and what it says besides."""

    rows: list[Row]
    config: dict[str, Any]
    """`experiment_config`."""
    extra: dict[str, Any]
    """All fields of the file but the latents'."""
    latents: list[dict[str, Any]]
    """Each latent's fields but its trials."""


def read_results(path: Path) -> ResultFile:
    """Raises UserError naming file and place: not readable, not JSON, not in the form."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8") from None
    if path.suffix == ".jsonl":
        return _lines(path, text)
    data = _json(str(path), text)
    if not isinstance(data, dict) or not isinstance(data.get("results_by_feature"), list):
        raise UserError(
            f"{path}: no results of the published code: it needs a list `results_by_feature`"
        )
    return _whole(path, data)


def _json(where: str, text: str) -> Any:
    try:
        return json.loads(text, parse_constant=str)  # NaN is kept as a word
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON (line {error.lineno}: {error.msg})") from None


def _whole(path: Path, data: dict[str, Any]) -> ResultFile:
    extra = {k: v for k, v in data.items() if k != "results_by_feature"}
    latents = data["results_by_feature"]
    rows = [row for n, latent in enumerate(latents) for row in _trials(path, n, latent)]
    without = [{k: v for k, v in latent.items() if k != "trials"} for latent in latents]
    return ResultFile(rows, _table(data.get("experiment_config")), extra, without)


def _trials(path: Path, number: int, latent: Any) -> Iterator[Row]:
    where = f"{path}, results_by_feature[{number}]"
    if not isinstance(latent, dict):
        raise UserError(f"{where}: is not an object")
    own = {k: latent.get(k) for k in ("feature_index_in_sae", "feature_label", "threshold")}
    for n, trial in enumerate(latent.get("trials") or []):
        at = f"{where}.trials[{n}]"
        if not isinstance(trial, dict):
            raise UserError(f"{at}: is not an object")
        yield _row(at, {**own, **trial})


def _lines(path: Path, text: str) -> ResultFile:
    """`experiment_config`, or fields of one, may stand in every line; the first counts."""
    rows: list[Row] = []
    config: dict[str, Any] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        data = _json(f"{path}:{number}", line)
        if not isinstance(data, dict):
            raise UserError(f"{path}:{number}: is not an object")
        rows.append(_row(f"{path}:{number}", data))
        if not config:
            config = _table(data.get("experiment_config")) or {
                k: data[k] for k in ("model_name", "judge_model_name") if k in data
            }
    return ResultFile(rows, config, {}, [])


def _table(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _row(where: str, trial: Mapping[str, Any]) -> Row:
    try:
        return Row(
            where=where,
            prompt=str(trial["prompt"]),
            index=int(trial["feature_index_in_sae"]),
            label=str(trial.get("feature_label") or ""),
            strength=float(trial.get("threshold") or 0.0),
            seed=int(trial.get("seed") or 0),
            response=str(trial.get("response") or ""),
            score=trial.get("score"),
            error=str(trial.get("error") or ""),
            extra={k: v for k, v in trial.items() if k not in KNOWN},
        )
    except KeyError as missing:
        raise UserError(f"{where}: has no field {missing}") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from None
