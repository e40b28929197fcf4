"""Invented runs for the tests of the report: no model, every kind of trial, and hostile texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from steerback.store import Store
from steerback.types import (
    Attempt,
    Calibration,
    Generation,
    Intervention,
    Message,
    Sampling,
    Trial,
    Verdict,
)

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "</style><img src=x onerror=alert(3)>",
    "<!--<script>",
    "]]><svg onload=alert(4)>",
    "{{ 7 * 7 }} $x^2$ \u2028 \x00 \ud800 \u202e 😀",
)
CONFIG: dict[str, Any] = {
    "name": "invented",
    "protocols": ["baseline", "esr"],
    "prompts": "eval",
    "model": {"name": "tiny"},
    "calibration": {"target": 30.0, "unit": "resid", "method": "bisection"},
    "sampling": {"temperature": 0.6, "max_new_tokens": 9, "repetition_penalty": 1.1},
}
WAIT = "Wait, that is not right. Let me start over."


def make_trial(i: int, protocol: str = "esr", **changes: Any) -> Trial:
    add = Intervention("add", "sae", i % 6, 0.5 + i % 6 / 8, layer=1, unit="resid")
    question = changes.pop("question", f"How do you do {i % 7}?")
    fields: dict[str, Any] = {
        "arm": "unsteered" if protocol == "baseline" else "steered",
        "model": "tiny",
        "messages": (Message("user", question),),
        "sampling": Sampling(),
        # more digits than a JavaScript number has
        "seed": 2**62 + i,
        "interventions": () if protocol == "baseline" else (add,),
    }
    return Trial(protocol=protocol, question=question, **{**fields, **changes})


def say(trial: Trial, text: str) -> Generation:
    return Generation(trial.key, (1, 2), (3, 4, 5), text, "eos")


def judged(trial: Trial, text: str, *scores: float | None, status: Any = "ok") -> Verdict:
    """An attempt per score: the first up to the restart phrase, the others behind it."""
    at = text.find(WAIT)
    cuts = [0, len(text)] if len(scores) < 2 else [0, at, len(text)]
    spans = zip(cuts, cuts[1:], scores, strict=False)
    return Verdict(trial.key, "exact", tuple(Attempt(*s) for s in spans), status, "said so")


def invented(
    folder: Path,
    n: int = 60,
    *,
    words: str = "and so on ",
    judge: bool = True,
    config: dict[str, Any] | None = None,
) -> Path:
    """`n` steered and `n` unsteered trials; of the steered, some restart, one in 20 is unscored."""
    rng = np.random.default_rng(0)
    with Store.open(folder, {**CONFIG, **(config or {})}) as store:
        pairs, verdicts, thirds = [], [], []
        for i in range(n):
            plain, steered = make_trial(i, "baseline"), make_trial(i)
            first, last = (float(x) for x in rng.choice([5.0, 20.0, 80.0, 95.0], 2))
            again = i % 3 == 0
            hostile = HOSTILE[i % len(HOSTILE)]
            text = f"{hostile} {words * 3}" + (f"{WAIT} {words * 3}" if again else "")
            pairs += [(plain, say(plain, words)), (steered, say(steered, text))]
            verdicts.append(judged(plain, words, 95.0))
            scores = (first, last) if again else (first,)
            unscored = "unscored" if i % 20 == 7 else "ok"
            verdicts.append(judged(steered, text, *scores, status=unscored))
            if not again:
                ends = (Attempt(0, 3, first), Attempt(3, 9, last))
                thirds.append(Verdict(steered.key, "exact/thirds", ends, "ok"))
        store.add(pairs)
        if judge:
            store.add_verdicts([*verdicts, *thirds])
        _calibrations(store, rng)
        store.put_artifact("planned/esr", n)
        store.put_artifact("planned/baseline", n)
        store.note(judge="exact", prompts={"name": "eval", "n": 7, "sha256": "ab"})
    return folder


def _calibrations(store: Store, rng: np.random.Generator) -> None:
    store.put_artifact(
        "latents",
        [{"index": k, "label": HOSTILE[k % len(HOSTILE) - 1], "skip": []} for k in range(6)],
    )
    store.put_artifact(
        "funnel", [{"rule": f"rule {HOSTILE[0]}", "left": 100}, {"rule": "wanted", "left": 6}]
    )
    for k in range(6):
        strength, direction = 0.5 + k / 8, f"sae:{k}"
        add = (Intervention("add", "sae", k, strength, layer=1, unit="resid"),)
        trials = [
            make_trial(i, "calibration", arm="fresh", interventions=add, seed=i) for i in range(14)
        ]
        scores = [float(s) for s in rng.choice([0.0, 90.0], len(trials), p=[0.7, 0.3])]
        store.add([(t, say(t, "fresh")) for t in trials])
        store.add_verdicts([judged(t, "fresh", s) for t, s in zip(trials, scores, strict=True)])
        mean = sum(scores) / len(scores)
        store.put_calibration(
            Calibration(f"key{k}", direction, strength, 0.1, mean, len(scores), k < 5)
        )
    store.put_artifact("calibration_failures", {"sae:5": f"too far off {HOSTILE[1]}"})
