"""What a protocol analyses: the stored trials of a run with their verdicts, as outcomes by arm."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

from steerback.judge.base import judges_whole
from steerback.stats import Outcome, Summary, outcome, summarise
from steerback.store import Store
from steerback.types import COPY, Generation, Trial, Verdict, stable_hash


class Record(NamedTuple):
    """One judged trial."""

    trial: Trial
    generation: Generation
    verdict: Verdict
    outcome: Outcome


def pair_name(trial: Trial) -> str:
    """Same direction, strength, question and seed: what makes trials of two arms twins."""
    add = trial.steered_by
    steering = [] if add is None else [add.source, add.index, add.value, add.unit, add.layer]
    copies = [v for v in trial.variant if v.startswith(COPY)]
    return stable_hash([steering, trial.question, trial.seed, *copies])


def stored_finding(store: Store, protocol: str) -> tuple[dict[str, Any] | None, Any]:
    """(settings, finding) of a protocol that looked before it planned; (None, None) if it has not."""
    stored = store.get_artifact(f"found/{protocol}")
    return (None, None) if stored is None else (stored["settings"], stored["found"])


class Records:
    """The trials of a run as one judge sees them (the one with most verdicts, if none is named)."""

    def __init__(self, store: Store, judge: str = "") -> None:
        self.store = store
        names = [name for name in store.judges() if judges_whole(name)]
        self.judge = judge or (names[0] if names else "")

    @cached_property
    def _verdicts(self) -> dict[str, Verdict]:
        return self.store.verdicts(self.judge) if self.judge else {}

    @cached_property
    def _thirds(self) -> dict[str, Verdict]:
        return self.store.verdicts(f"{self.judge}/thirds") if self.judge else {}

    @cached_property
    def _rest(self) -> dict[str, Verdict]:
        return self.store.verdicts(f"{self.judge}/rest") if self.judge else {}

    def score_of_rest(self, record: Record) -> float | None:
        """Score of what follows the prefill; None where nobody scored it."""
        verdict = self._rest.get(record.outcome.trial_key)
        return None if verdict is None or verdict.status != "ok" else verdict.attempts[0].score

    def of(self, protocol: str, arm: str | None = None) -> Iterator[Record]:
        """Judged trials of a protocol, in the order of their keys."""
        for trial, generation in self.store.trials(protocol=protocol, arm=arm):
            verdict = self._verdicts.get(trial.key)
            if verdict is not None:
                yield Record(trial, generation, verdict, self._outcome(trial, generation, verdict))

    def _outcome(self, trial: Trial, generation: Generation, verdict: Verdict) -> Outcome:
        thirds = self._thirds.get(trial.key)
        scores = None if thirds is None or thirds.status != "ok" else thirds.scores
        add = trial.steered_by
        return outcome(
            trial.key,
            trial.cluster,
            verdict,
            generation.text,
            None if scores is None else (scores[0], scores[1]),
            strength=None if add is None else add.value,
            pair=pair_name(trial),
            prefilled=bool(trial.prefill),
        )

    def finding(self, protocol: str) -> tuple[dict[str, Any] | None, Any]:
        """Settings of a protocol that looked before it planned, and what it found; None, None if not."""
        return stored_finding(self.store, protocol)

    def arms(self, protocol: str) -> list[tuple[str, str]]:
        """(arm, model) pairs that are stored."""
        return [(c.arm, c.model) for c in self.store.counts() if c.protocol == protocol]

    def model(self, protocol: str) -> str:
        """Model of the protocol's trials; "" if there are none."""
        return next((c.model for c in self.store.counts() if c.protocol == protocol), "")

    def summaries(self, protocol: str) -> tuple[Summary, ...]:
        """One summary per arm and model."""
        return tuple(
            summarise(
                [r.outcome for r in self.of(protocol, arm) if r.trial.model == model],
                protocol=protocol,
                arm=arm,
                model=model,
            )
            for arm, model in self.arms(protocol)
        )
