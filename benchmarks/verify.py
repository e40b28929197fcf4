"""What gets past a check: attempts that an inventing judge claims, and the offline concreteness.

    python benchmarks/verify.py

Claims an attempt wherever a line, and wherever a sentence, of a labelled negative begins, and counts
those that count in each mode. Then compares the offline rating of labels with ratings by hand.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import numpy as np
from scipy.stats import pearsonr, spearmanr

from steerback.judge.base import Request
from steerback.judge.concrete import rate_by_words
from steerback.judge.segment import segment
from steerback.judge.verify import Mode, verdict_of
from steerback.stats import auc

DATA = Path(__file__).parents[1] / "tests" / "data"
CUTS = {"line": r"\n+(?=\S)", "sentence": r"(?<=[.!?])\s+|\n+"}
KEPT = 65
"""Rating from which a label is concrete."""


def negatives(name: str) -> list[str]:
    path = DATA / "restarts" / f"{name}.jsonl"
    cases = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [c["text"] for c in cases if len(c["starts"]) == 1 and not c.get("ambiguous")]


def claimed(texts: Sequence[str], cut: str, mode: Mode) -> tuple[int, int]:
    """(claims beyond the first attempt, those that became attempts)"""
    made = counted = 0
    for n, text in enumerate(texts):
        pieces = [p for p in re.split(cut, text) if p and p.strip()]
        answer = json.dumps({"attempts": [{"text": p[:200], "score": 50} for p in pieces]})
        verdict = verdict_of(Request(str(n), "?", text), "inventor", answer, mode)
        made += len(pieces) - 1
        counted += len(verdict.attempts) - 1
    return made, counted


def invented() -> None:
    print("set        claims at every   negatives  claims  verify  trust  segment alone")
    for name in ("labelled", "wild", "fresh"):
        texts = negatives(name)
        alone = sum(len(segment(t)) - 1 for t in texts)
        for place, cut in CUTS.items():
            made, verified = claimed(texts, cut, "verify")
            _, trusted = claimed(texts, cut, "trust")
            print(
                f"{name:10} {place:17} {len(texts):9,} {made:7,} {verified:7,} {trusted:6,} {alone:8}"
            )


def concreteness() -> None:
    with (DATA / "concreteness.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    by_hand = np.array([float(r["score"]) for r in rows])
    offline = np.array([rate_by_words(r["label"]) for r in rows])
    concrete = by_hand >= KEPT
    kept = offline >= KEPT
    area = auc(offline[concrete], offline[~concrete])
    print(
        f"\nconcreteness, {len(rows)} labels: Pearson {pearsonr(offline, by_hand).statistic:.2f}, "
        f"Spearman {spearmanr(offline, by_hand).statistic:.2f}, AUC {area:.2f}; keeps "
        f"{kept[concrete].mean():.0%} of those from {KEPT} up, "
        f"{kept[~concrete].mean():.0%} of the others"
    )


if __name__ == "__main__":
    invented()
    concreteness()
