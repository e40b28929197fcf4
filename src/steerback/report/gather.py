"""Everything that a report shows of one run, read once; the run may be going on meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from steerback import protocols
from steerback.crossjudge import agreement
from steerback.finetune.design import NAME as COMPARED
from steerback.judge.base import judges_whole
from steerback.protocols.base import Analysis
from steerback.records import Records
from steerback.report.numbers import check_judge, common_folder, known_protocols
from steerback.report.strengths import Strength, strengths
from steerback.stats import Outcome
from steerback.store import Session, Store
from steerback.switches import in_force
from steerback.types import CALIBRATION, Generation, Trial, Verdict

HEADLINE = ("baseline", "esr")
"""Protocols of the main job; any other has a section of its own."""
ELSEWHERE = (CALIBRATION, COMPARED)
"""Protocols whose trials are not analysed by the run alone."""


class Row(NamedTuple):
    """One trial; without verdict and outcome where nobody has judged it yet."""

    trial: Trial
    generation: Generation
    verdict: Verdict | None
    outcome: Outcome | None


class Arm(NamedTuple):
    protocol: str
    arm: str
    model: str


@dataclass(frozen=True)
class Experiment:
    """What one protocol found."""

    name: str
    asks: str
    analysis: Analysis


@dataclass(frozen=True)
class Run:
    """One run, ready to be shown."""

    folder: Path
    name: str
    config: Mapping[str, Any]
    judge: str
    """The one whose verdicts are shown; empty if nobody has judged."""
    judges: tuple[str, ...]
    experiments: tuple[Experiment, ...]
    rows: tuple[Row, ...]
    strengths: tuple[Strength, ...]
    funnel: tuple[tuple[str, int], ...]
    labels: Mapping[str, str]
    """Direction -> what it is said to stand for."""
    sessions: tuple[Session, ...]
    notes: tuple[str, ...]
    """What a reader must know before the numbers."""

    @property
    def holds_anything(self) -> bool:
        return bool(self.rows or self.strengths or self.experiments)

    @property
    def model(self) -> str:
        return str(self.config.get("model", {}).get("name") or self.name)

    @property
    def target(self) -> float:
        """First-attempt score that strengths aim at."""
        return float(self.config.get("calibration", {}).get("target", 30.0))

    @property
    def unit(self) -> str:
        return str(self.config.get("calibration", {}).get("unit", "raw"))

    @property
    def prompts(self) -> str:
        """The questions by name, and how many there are if a session noted it."""
        noted: Mapping[str, Any] = next(
            (s.facts["prompts"] for s in reversed(self.sessions) if "prompts" in s.facts), {}
        )
        name = str(noted.get("name") or self.config.get("prompts") or "not recorded")
        return f"{noted['n']:,} questions, {name}" if "n" in noted else name

    @property
    def method(self) -> str:
        """Name of the search for strengths."""
        return str(self.config.get("calibration", {}).get("method", "search"))

    @property
    def layers(self) -> str:
        """Which layer the SAE was trained on, and which is steered."""
        model, sae = self.config.get("model"), self.config.get("sae")
        if not model or not sae:
            return "not recorded"
        return f"SAE of {sae['layer']}, steered at {model['steer_layer']}"

    @property
    def ways(self) -> str:
        """Ways of the published code that the run was made in."""
        if not self.config:
            return "not recorded"
        ways = in_force(self.config)
        return ", ".join(ways) or "none"

    @property
    def sampling(self) -> str:
        s = self.config.get("sampling")
        if not s:
            return "not recorded"
        return (
            f"temperature {s['temperature']:g}, at most {s['max_new_tokens']} tokens, repetition "
            f"penalty {s['repetition_penalty']:g}"
        )

    def arms(self) -> dict[Arm, list[Row]]:
        """Trials by arm, in the order of their names."""
        found: dict[Arm, list[Row]] = {}
        for row in self.rows:
            found.setdefault(Arm(row.trial.protocol, row.trial.arm, row.trial.model), []).append(
                row
            )
        return dict(sorted(found.items()))


def gather(folder: Path, judge: str = "") -> Run:
    """Read a run. Raises UserError if it cannot be read or the judge has no verdicts in it."""
    with Store.open(folder, mode="ro") as store:
        check_judge(store, judge)
        records = Records(store, judge)
        names = known_protocols(store)
        chosen = store.get_artifact("latents", [])
        labels = {
            f"{c.get('source', 'sae')}:{c['index']}": c["label"] for c in chosen if c.get("label")
        }
        config = store.config
        rows = sorted(_rows(store, records, names), key=lambda r: r.trial.key)
        return Run(
            folder=folder,
            name=str(config.get("name") or folder.name),
            config=config,
            judge=records.judge,
            judges=tuple(j for j in store.judges() if judges_whole(j)),
            experiments=(*_experiments(records, names), *_regraded(store)),
            rows=tuple(rows),
            strengths=tuple(strengths(store, records, labels)),
            funnel=tuple((s["rule"], s["left"]) for s in store.get_artifact("funnel", [])),
            labels=labels,
            sessions=tuple(store.sessions()),
            notes=tuple(_notes(store, rows, names)),
        )


def told_apart(runs: Sequence[Run]) -> list[Run]:
    """Runs of one name are told apart by their folders, as far as those differ."""
    names, common = [r.name for r in runs], common_folder([r.folder for r in runs])
    return [
        replace(r, name=f"{r.name} ({r.folder.resolve().relative_to(common)})")
        if names.count(r.name) > 1
        else r
        for r in runs
    ]


def _experiments(records: Records, names: Sequence[str]) -> Iterator[Experiment]:
    """Those that found something."""
    for name in names:
        protocol = protocols.get(name)
        analysis = protocol.analyse(records)
        if analysis.summaries or analysis.comparisons or analysis.sheets:
            yield Experiment(name, protocol.asks, analysis)


def _regraded(store: Store) -> Iterator[Experiment]:
    """What other judges say of a sample, if `steerback crossjudge` asked them."""
    found = agreement.analyse(store)
    if found.sheets:
        yield Experiment(agreement.NAME, agreement.ASKS, found)


def _rows(store: Store, records: Records, names: Sequence[str]) -> Iterator[Row]:
    for name in names:
        judged = set()
        for record in records.of(name):
            judged.add(record.trial.key)
            yield Row(*record)
        for trial, generation in store.trials(protocol=name):
            if trial.key not in judged:
                yield Row(trial, generation, None, None)


def _notes(store: Store, rows: Sequence[Row], names: Sequence[str]) -> Iterator[str]:
    """What is not finished, not judged, not known."""
    sessions = store.sessions()
    if sessions and sessions[-1].ended is None:
        began = time.strftime("%Y-%m-%d %H:%M", time.gmtime(sessions[-1].started))
        yield (
            f"The session of {began} UTC has not ended: the run is going on, or was stopped. "
            "These are the numbers of what was stored."
        )
    for key in store.artifacts():
        kind, _, name = key.partition("/")
        if kind == "refused" and (reason := store.get_artifact(key)):
            yield f"{name} did not run: {reason}"
    for name in names:
        stored = [r for r in rows if r.trial.protocol == name]
        planned = store.get_artifact(f"planned/{name}")
        if planned is not None and len(stored) < planned:
            yield f"{name}: {len(stored):,} of {planned:,} planned trials are stored."
        waiting = sum(r.verdict is None for r in stored)
        if waiting:
            yield f"{name}: {waiting:,} of {len(stored):,} trials are not judged; no number counts them."
    if not rows:
        yield "No trial of an experiment is stored yet, only what comes before."
    strange = {c.protocol for c in store.counts()} - {*names, *ELSEWHERE}
    if strange:
        yield f"Not analysed, for this version does not know them: {', '.join(sorted(strange))}."
