"""Results of the published code as a run: its trials with their scores, under new statistics."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from steerback.errors import UserError
from steerback.imports.files import ResultFile, Row, read_results
from steerback.imports.trials import convert
from steerback.store import Store
from steerback.types import COPY, Generation, Trial, Verdict

ARTIFACT = "imported"


@dataclass
class Tally:
    """What became of the files' trials."""

    trials: int = 0
    new: int = 0
    repeated: int = 0
    """Stored before, from this file or another."""
    conflicts: int = 0
    """Stored before with another response; the first stays."""
    statuses: Counter[str] = field(default_factory=Counter)
    failed_latents: int = 0
    """Latents for which a file holds an error and no trial."""


def import_results(paths: Sequence[Path], folder: Path) -> Tally:
    """Read result files into the run in `folder`, made if there is none; again is harmless.

    Fields that are not known here are kept: those of a file, of its latents and of its trials as
    the artifact `imported/SHA-256`, a score as the verdict's raw text. Raises UserError: a file is
    not one of the published code's, or the folder holds a run of its own.
    """
    files = [read_results(path) for path in paths]
    tally = Tally()
    with Store.open(folder, facts={"imported": [p.name for p in paths]}) as store:
        if store.config:
            raise UserError(f"{folder}: holds a run of its own; import into another folder")
        for path, file in zip(paths, files, strict=True):
            _keep(store, path, file, tally)
    return tally


def _keep(store: Store, path: Path, file: ResultFile, tally: Tally) -> None:
    converted = list(_numbered(file, path.name))
    added = store.add([(t, g) for _, t, g, _ in converted], engine="imported")
    # a response that lost against another of the same key must not lend its score to that one
    kept = [v for _, t, _, v in converted if t.key not in added.conflicts]
    store.add_verdicts(kept)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    extras = {t.key: row.extra for row, t, _, _ in converted if row.extra}
    about = {"file": path.name, "fields": file.extra, "latents": file.latents, "trials": extras}
    store.put_artifact(f"{ARTIFACT}/{digest}", about)
    _name_latents(store, file.rows)
    tally.trials += len(converted)
    tally.new += added.new
    tally.repeated += added.repeated
    tally.conflicts += len(added.conflicts)
    tally.statuses.update(v.status for *_, v in converted)
    tally.failed_latents += sum(1 for latent in file.latents if latent.get("error"))


def _numbered(file: ResultFile, name: str) -> Iterator[tuple[Row, Trial, Generation, Verdict]]:
    """Equal trials of one file are told apart, so that each counts."""
    seen: Counter[str] = Counter()
    for row in file.rows:
        trial, generation, verdict = convert(row, file, name)
        seen[trial.key] += 1
        if (n := seen[trial.key]) > 1:
            trial = replace(trial, variant=(*trial.variant, f"{COPY}{n}"))
            generation = replace(generation, trial_key=trial.key)
            verdict = replace(verdict, trial_key=trial.key)
        yield row, trial, generation, verdict


def _name_latents(store: Store, rows: Sequence[Row]) -> None:
    known: dict[int, dict[str, Any]] = {c["index"]: c for c in store.get_artifact("latents", [])}
    for row in rows:
        known.setdefault(row.index, {"index": row.index, "label": row.label, "skip": []})
    store.put_artifact("latents", [known[k] for k in sorted(known)])
