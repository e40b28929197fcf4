"""A run as one table, and as files for other programs."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from steerback.codec import portable
from steerback.errors import UserError, nearest
from steerback.stats import outcome
from steerback.store import Store
from steerback.types import CALIBRATION, Generation, Trial, Verdict

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = {
    "key": "str",
    "protocol": "str",
    "arm": "str",
    "model": "str",
    "question": "str",
    "prefill": "str",
    "cluster": "str",
    "source": "str",
    "index": "Int64",
    "strength": "float64",
    "unit": "str",
    "layer": "Int64",
    "interventions": "int64",
    "seed": "int64",
    "text": "str",
    "finish_reason": "str",
    "n_tokens": "int64",
    "judge": "str",
    "status": "str",
    "missing": "boolean",
    "attempts": "Int64",
    "first": "float64",
    "last": "float64",
}
"""Columns of `read` and their pandas types. `str` columns hold None where there is nothing."""


def read(
    folder: str | Path, judge: str | None = None, *, calibration: bool = False
) -> pd.DataFrame:
    """One row per stored trial, in the order of the keys, with the columns `COLUMNS`.

    Trials of the search for strengths are left out unless `calibration`: they were made at other
    strengths than the calibrated one, so they belong to no rate.

    `source`, `index`, `strength`, `unit`, `layer` are those of the first added direction, empty for
    an unsteered trial. `attempts`, `first`, `last` (scores 0-100) are of `judge`, by default the
    judge with most verdicts; `status` is empty where it has not judged. `missing` is true where the
    statistics leave a trial out (`stats.outcomes`), empty where it is not judged. May be called while
    the run is going on. Raises UserError if there is no run, or no verdict of that judge.
    """
    import pandas as pd  # slow to import: only who asks for a table pays

    with Store.open(folder, mode="ro") as store:
        name = _choose_judge(store, judge)
        verdicts = store.verdicts(name) if name else {}
        rows = [
            _row(t, g, verdicts.get(g.trial_key))
            for t, g in store.trials()
            if calibration or t.protocol != CALIBRATION
        ]
    frame: pd.DataFrame = pd.DataFrame(
        {
            column: pd.Series([r.get(column) for r in rows], dtype=_dtype(kind))
            for column, kind in COLUMNS.items()
        }
    )
    return frame


def _dtype(kind: str) -> Any:
    return object if kind == "str" else kind


def _choose_judge(store: Store, judge: str | None) -> str | None:
    known = store.judges()
    if judge is not None and judge not in known:
        raise UserError(f"{store.folder}: no verdicts of judge {judge!r}; {nearest(judge, known)}")
    return judge or (known[0] if known else None)


def _row(trial: Trial, made: Generation, verdict: Verdict | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        name: getattr(trial, name)
        for name in ("protocol", "arm", "model", "question", "prefill", "cluster", "seed")
    }
    row |= {"key": made.trial_key, "text": made.text, "finish_reason": made.finish_reason}
    row |= {"n_tokens": len(made.token_ids), "interventions": len(trial.interventions)}
    if add := trial.steered_by:
        row |= {"source": add.source, "index": add.index, "strength": add.value}
        row |= {"unit": add.unit, "layer": add.layer}
    if verdict:
        row |= {"judge": verdict.judge, "status": verdict.status}
        row["missing"] = outcome(trial.key, trial.cluster, verdict, made.text).missing
        row["attempts"] = len(verdict.attempts)
        if verdict.attempts:
            row |= {"first": verdict.attempts[0].score, "last": verdict.attempts[-1].score}
    return row


def export(folder: str | Path, to: str = "jsonl", out: str | Path | None = None) -> Path:
    """Writes the run as a file, complete or not at all, and returns its path.

    `jsonl` holds every trial, generation and verdict in full, one trial per line; `csv` and
    `parquet` hold the table of `read`. Without `out` the file is `trials.<to>` in the run folder.
    Raises UserError: unknown format, no run, pyarrow missing, the file cannot be written.
    """
    if to not in _WRITERS:
        raise UserError(f"export: unknown format {to!r}; {nearest(to, _WRITERS)}")
    target = Path(out) if out is not None else Path(folder) / f"trials.{to}"
    Store.open(folder, mode="ro").close()
    try:
        with _replacing(target) as file:
            _WRITERS[to](Path(folder), file)
    except OSError as error:
        raise UserError(f"{target}: cannot write here ({error.strerror or error})") from error
    return target


@contextmanager
def _replacing(target: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `target` when the block ends well, and vanishes otherwise."""
    with tempfile.NamedTemporaryFile(
        dir=target.parent, prefix=f".{target.name}.", delete=False
    ) as file:
        try:
            yield file  # type: ignore[misc]  # a wrapper with the methods of BinaryIO
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.chmod(file.name, 0o666 & ~_umask())
            os.replace(file.name, target)
        except BaseException:
            file.close()
            os.unlink(file.name)
            raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write_jsonl(folder: Path, file: BinaryIO) -> None:
    with Store.open(folder, mode="ro") as store:
        judged = [store.verdicts(judge) for judge in store.judges()]
        for trial, made in store.trials():
            key = made.trial_key
            record = {
                "key": key,
                "cluster": trial.cluster,
                "trial": trial.record(),
                "generation": {k: v for k, v in asdict(made).items() if k != "trace"},
                "verdicts": [asdict(verdicts[key]) for verdicts in judged if key in verdicts],
            }
            file.write(json.dumps(record, allow_nan=False).encode() + b"\n")


def _write_csv(folder: Path, file: BinaryIO) -> None:
    read(folder, calibration=True).to_csv(
        file, index=False, errors="backslashreplace", lineterminator="\n"
    )


def _write_parquet(folder: Path, file: BinaryIO) -> None:
    if find_spec("pyarrow") is None:
        raise UserError(
            "export: parquet needs pyarrow; install it with: pip install 'steerback[parquet]'"
        )
    frame = read(folder, calibration=True)
    texts = [name for name, kind in COLUMNS.items() if kind == "str"]
    frame[texts] = frame[texts].map(portable)
    frame.to_parquet(file, engine="pyarrow", index=False)


_WRITERS: dict[str, Callable[[Path, BinaryIO], None]] = {
    "csv": _write_csv,
    "jsonl": _write_jsonl,
    "parquet": _write_parquet,
}
