"""The sample of a run goes to other judges; what they say is stored beside the run's own verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from steerback.config import JudgingConfig
from steerback.crossjudge.grades import read_sheet, write_sheet
from steerback.crossjudge.sample import choose
from steerback.errors import UserError
from steerback.judge.base import Judge, Request
from steerback.judge.llm import LlmJudge
from steerback.records import Record, Records
from steerback.store import Store
from steerback.types import CALIBRATION

ARTIFACT = "crossjudge"
BATCH = 64
"""Responses judged between two writes: what a kill can lose of a judge's work is in its own cache."""

Maker = Callable[[str], Judge]


@dataclass(frozen=True)
class Wanted:
    """What to do to one run."""

    judges: tuple[str, ...] = ()
    """Names as in a configuration; the run's own judge is always among those compared."""
    per_model: int = 100
    """Trials without a second attempt, per model."""
    seed: int = 0
    human: tuple[Path, ...] = ()
    """CSV files of human labels, each one more judge by the file's name."""


def sample_of(store: Store, per_model: int, seed: int) -> tuple[Records, list[Record]]:
    """The run's verdicts and the trials to regrade. Raises UserError if nothing was judged."""
    records = Records(store)
    protocols = sorted({c.protocol for c in store.counts()} - {CALIBRATION})
    sample = choose((r for p in protocols for r in records.of(p)), per_model, seed)
    if not sample:
        raise UserError(f"{store.folder}: nothing is judged yet; `steerback run` does that first")
    return records, sample


def regrade(store: Store, wanted: Wanted, make: Maker, say: Callable[[str], None]) -> None:
    """Ask each judge about what it has not judged; note what was compared. Run it again to resume."""
    records, sample = sample_of(store, wanted.per_model, wanted.seed)
    keys = [r.trial.key for r in sample]
    human = {_name(path): read_sheet(path, keys) for path in wanted.human}
    before = store.get_artifact(ARTIFACT, {})
    judges = [records.judge]
    note = {"per_model": wanted.per_model, "seed": wanted.seed, "keys": keys}
    labels = {n: {k: asdict(g) for k, g in grades.items()} for n, grades in human.items()}
    kept = before.get("human", {}) if before.get("keys") == keys else {}
    others = before.get("judges", []) if before.get("keys") == keys else []
    for spec in wanted.judges:
        judge = make(spec)
        say(
            f"{judge.name}: {len(_open(store, judge, sample)):,} of {len(sample):,} responses to judge"
        )
        for batch in _batches(_open(store, judge, sample)):
            store.add_verdicts(judge.judge(batch))
        judges.append(judge.name)
    names = list(dict.fromkeys([*judges[:1], *others, *judges]))
    store.put_artifact(ARTIFACT, {**note, "judges": names, "human": {**kept, **labels}})
    store.note(crossjudge=names)


def estimate(store: Store, wanted: Wanted, make: Maker) -> list[str]:
    """A dry run: what each judge would be asked, in a line. Nothing is asked and nothing stored."""
    _, sample = sample_of(store, wanted.per_model, wanted.seed)
    lines = []
    for spec in wanted.judges:
        judge = make(spec)
        waiting = _open(store, judge, sample)
        size = (
            judge.estimate(waiting)
            if isinstance(judge, LlmJudge)
            else f"{len(waiting):,} responses"
        )
        lines.append(f"{judge.name}: {size}")
    return lines


def blank_sheet(store: Store, wanted: Wanted, path: Path) -> int:
    """The sample as a CSV to be labelled by hand."""
    return write_sheet(path, sample_of(store, wanted.per_model, wanted.seed)[1])


def judging(store: Store) -> JudgingConfig:
    """The run's own settings for judges."""
    return JudgingConfig.model_validate(store.config.get("judging", {}))


def labels_of(store: Store) -> dict[str, str]:
    """What each trial is steered towards, by trial key: some judges ask."""
    names = {
        f"{c.get('source', 'sae')}:{c['index']}": c["label"]
        for c in store.get_artifact("latents", [])
    }
    found = {}
    for trial, _ in store.trials():
        add = trial.steered_by
        if add and (label := names.get(f"{add.source}:{add.index}")):
            found[trial.key] = label
    return found


def _name(path: Path) -> str:
    return f"human:{path.stem}"


def _open(store: Store, judge: Judge, sample: Sequence[Record]) -> list[Request]:
    """What the judge has not answered, errors included."""
    done = {k for k, v in store.verdicts(judge.name).items() if v.status != "error"}
    return [
        Request(r.trial.key, r.trial.question, r.generation.text)
        for r in sample
        if r.trial.key not in done
    ]


def _batches(requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
    for start in range(0, len(requests), BATCH):
        yield requests[start : start + BATCH]
