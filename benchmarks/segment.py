"""How exactly restarts are found in labelled responses, and how fast.

    python benchmarks/segment.py tests/data/restarts/labelled.jsonl [more.jsonl] [--json] [--misses]
    python benchmarks/segment.py --prose .venv/lib    # how often documentation is taken for a restart

A labelled line has `text` and `starts` (the first is 0); lines marked `ambiguous` are counted apart.
A predicted boundary is right within NEAR characters of a labelled one, exact at the same character.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from steerback.judge.learned import NAME
from steerback.judge.patterns import Patterns, load_patterns
from steerback.judge.segment import restarts, segment

NEAR = 60
PROSE = (".md", ".rst", "METADATA")
"""Endings, and names, of files that are documentation."""


@dataclass
class Score:
    responses: int = 0
    negatives: int = 0
    gold: int = 0
    found: int = 0
    exact: int = 0
    predicted: int = 0
    false_in_negatives: int = 0
    """Negatives with a boundary at all."""
    misses: list[str] = field(default_factory=list)

    def add(self, case: dict[str, Any], predicted: list[int]) -> None:
        gold, guesses = case["starts"][1:], predicted[1:]
        found = pair(gold, guesses)
        self.responses += 1
        self.gold += len(gold)
        self.predicted += len(guesses)
        self.found += len(found)
        self.exact += sum(g == p for g, p in found)
        self.negatives += not gold
        self.false_in_negatives += not gold and bool(guesses)
        if gold != guesses:
            self.misses.append(f"{case['id']} ({case.get('kind', '')}): {gold} != {guesses}")

    def table(self) -> dict[str, float | int]:
        return {
            "responses": self.responses,
            "boundaries": self.gold,
            "precision": share(self.found, self.predicted),
            "recall": share(self.found, self.gold),
            "exact": share(self.exact, self.found),
            "negatives": self.negatives,
            "false_per_1000": 1000 * share(self.false_in_negatives, self.negatives, empty=0.0),
        }


def share(part: int, whole: int, empty: float = 1.0) -> float:
    return part / whole if whole else empty


def pair(gold: list[int], guesses: list[int]) -> list[tuple[int, int]]:
    """Each labelled boundary with its nearest guess, each guess used once."""
    free, pairs = list(guesses), []
    for g in gold:
        best = min(free, key=lambda p: abs(p - g), default=None)
        if best is not None and abs(best - g) <= NEAR:
            free.remove(best)
            pairs.append((g, best))
    return pairs


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def milliseconds(cases: list[dict[str, Any]], patterns: Patterns | None) -> dict[str, float]:
    """Processor time per response of 2,500 characters: a case, filled up with ordinary answers of the
    set (`plain-` kinds), or where it has none with its negatives."""
    plain = [case["text"] for case in cases if case.get("kind", "").startswith("plain-")]
    plain = plain or [case["text"] for case in cases if len(case["starts"]) == 1]
    filler = "\n\n".join(plain)
    filler *= 1 + 5000 // len(filler)
    times = []
    for n, case in enumerate(cases):
        at = n * 997 % max(1, len(filler) - 2500)
        long = (case["text"] + "\n\n" + filler[at:])[:2500]
        best = float("inf")
        for _ in range(5):
            began = time.process_time()
            segment(long, patterns)
            best = min(best, time.process_time() - began)
        times.append(1000 * best)
    return {"median": float(np.median(times)), "p99": float(np.quantile(times, 0.99))}


def measure(path: Path, patterns: Patterns | None) -> dict[str, Any]:
    cases = read(path)
    sure, doubtful = Score(), Score()
    for case in cases:
        (doubtful if case.get("ambiguous") else sure).add(case, segment(case["text"], patterns))
    return {
        "file": str(path),
        **sure.table(),
        "ambiguous": doubtful.responses,
        "ambiguous_as_labelled": doubtful.responses - len(doubtful.misses),
        "ms_per_2500_chars": milliseconds(cases, patterns),
        "misses": sure.misses,
    }


def pieces(folder: Path) -> list[str]:
    """Text files under a folder that were written to be read (PROSE), in pieces of 2,500 characters."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and (path.suffix in PROSE or path.name in PROSE):
            text = path.read_text("utf-8", "ignore")
            if path.name == "METADATA":  # the description comes after the head
                text = text.partition("\n\n")[2]
            cut = (text[at : at + 2500] for at in range(0, len(text), 2500))
            found += [piece for piece in cut if len(piece) > 600]
    return found


def show_prose(folder: Path, patterns: Patterns | None) -> None:
    """Pieces of ordinary text in which a restart is seen: nearly all are false alarms."""
    texts = pieces(folder)
    segment("Phrases and weights are read.", patterns)
    began = time.process_time()
    seen = [restarts(text, patterns) for text in texts]
    spent = time.process_time() - began
    alarms = [found for found in seen if found]
    learned = sum(all(r.pattern_id == NAME for r in found) for found in alarms)
    print(
        f"{folder}: {len(texts):,} pieces, {1000 * share(len(alarms), len(texts), 0.0):.1f} alarms per "
        f"1,000, {1000 * share(learned, len(texts), 0.0):.1f} by weights alone; "
        f"{1000 * share(1, len(texts), 0.0) * spent:.2f} ms a piece"
    )


def show(row: dict[str, Any], misses: bool) -> None:
    ms = row["ms_per_2500_chars"]
    print(
        f"{row['file']}: n {row['responses']}, boundaries {row['boundaries']}: "
        f"precision {row['precision']:.4f}, recall {row['recall']:.4f}, exact {row['exact']:.4f}, "
        f"false per 1,000 negatives {row['false_per_1000']:.1f} (n {row['negatives']}), "
        f"{ms['median']:.2f} ms median, {ms['p99']:.2f} ms p99"
    )
    for miss in row["misses"] if misses else ():
        print("  " + miss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--prose", type=Path, help="a folder with documentation in it")
    parser.add_argument("--patterns", type=Path, help="a pattern file instead of the packaged one")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--misses", action="store_true", help="list every response split wrongly")
    args = parser.parse_args()
    patterns = load_patterns(args.patterns) if args.patterns else None
    if args.prose:
        show_prose(args.prose, patterns)
    rows = [measure(path, patterns) for path in args.files]
    if not rows and not args.prose:
        parser.error("name a labelled file, or a folder with --prose")
    if args.json:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            show(row, args.misses)


if __name__ == "__main__":
    main()
