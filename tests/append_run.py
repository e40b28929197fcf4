"""Invented records, and a process that appends them to a run: `append_run.py FOLDER BATCH`."""

from __future__ import annotations

import sys

from steerback.store import Store
from steerback.types import (
    Attempt,
    Generation,
    Intervention,
    Message,
    Sampling,
    Trace,
    Trial,
    Verdict,
)

TOTAL = 1200


def make_trial(i: int, arm: str = "steered") -> Trial:
    add = Intervention("add", "sae", i % 3, 1.5 + i, layer=1, unit="resid")
    return Trial(
        protocol="esr",
        arm=arm,
        model="tiny",
        question=f"How do you do {i}?",
        messages=(Message("user", f"How do you do {i}?"),),
        sampling=Sampling(),
        seed=i,
        interventions=(add,) if arm == "steered" else (),
    )


def make_generation(trial: Trial, trace: Trace | None = None) -> Generation:
    text = f"answer {trial.seed} — wait, naïve \x00"
    return Generation(trial.key, (1, 2), (3, trial.seed), text, "eos", trace)


def make_pair(i: int, arm: str = "steered") -> tuple[Trial, Generation]:
    trial = make_trial(i, arm)
    return trial, make_generation(trial)


def make_verdict(key: str, status: str = "ok", judge: str = "exact") -> Verdict:
    attempts = (Attempt(0, 6, 20.5), Attempt(6, 9, 80.0)) if status == "ok" else ()
    return Verdict(key, judge, attempts, status, f"raw {status}")  # type: ignore[arg-type]


def append(folder: str, batch: int) -> None:
    """Stores what is missing of TOTAL trials, judging after each batch."""
    with Store.open(folder, {"seed": 1}) as store:
        pairs = {t.key: (t, g) for t, g in map(make_pair, range(TOTAL))}
        todo = store.missing([t for t, _ in pairs.values()])
        print("open", flush=True)
        for at in range(0, len(todo), batch):
            chunk = [pairs[t.key] for t in todo[at : at + batch]]
            store.add(chunk)
            print(".", end="", flush=True)
            store.add_verdicts([make_verdict(t.key) for t, _ in chunk])
        store.add_verdicts([make_verdict(t.key) for t, _ in store.unjudged("exact")])


if __name__ == "__main__":
    append(sys.argv[1], int(sys.argv[2]))
