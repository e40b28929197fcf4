"""Protocols run inside another one: their trials are stored under its name, and read back under theirs.

An outer protocol that runs others on other questions stores all trials as its own, with the inner
protocol in the arm (`esr: steered`), so that nothing mixes with the run's own trials.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from steerback.protocols.bench import Bench
from steerback.records import Record, Records
from steerback.types import Generation, Trial

Findings = Mapping[str, tuple[dict[str, Any] | None, Any]]
"""Inner protocol -> its settings, and what it found before it planned (None if it does not look)."""


def shelve(outer: str, trial: Trial) -> Trial:
    """An inner protocol's trial, as the outer one stores it."""
    return replace(trial, protocol=outer, arm=f"{trial.protocol}: {trial.arm}")


class Shelf(Records):
    """The records of an outer protocol, by the names of the inner ones."""

    def __init__(self, records: Records, outer: str, findings: Findings) -> None:
        super().__init__(records.store, records.judge)
        self._records, self._outer, self._findings = records, outer, findings

    def of(self, protocol: str, arm: str | None = None) -> Iterator[Record]:
        for full, _ in self._records.arms(self._outer):
            inner, _, name = full.partition(": ")
            if inner == protocol and arm in (None, name):
                for record in self._records.of(self._outer, full):
                    yield record._replace(trial=unshelve(record.trial))

    def finding(self, protocol: str) -> tuple[dict[str, Any] | None, Any]:
        return self._findings.get(protocol, (None, None))

    def arms(self, protocol: str) -> list[tuple[str, str]]:
        found = ((arm.partition(": "), model) for arm, model in self._records.arms(self._outer))
        return [(name, model) for (inner, _, name), model in found if inner == protocol]


def unshelve(trial: Trial) -> Trial:
    """The inner protocol's own."""
    inner, _, arm = trial.arm.partition(": ")
    return replace(trial, protocol=inner, arm=arm)


class ShelfBench:
    """The bench as inner protocols see it; all but records and trials is the outer one's."""

    def __init__(self, bench: Bench, outer: str) -> None:
        self._bench, self._outer = bench, outer

    @property
    def records(self) -> Records:
        return Shelf(self._bench.records, self._outer, {})

    def execute(self, trials: Sequence[Trial], what: str) -> list[Generation]:
        return self._bench.execute([shelve(self._outer, t) for t in trials], what)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bench, name)
