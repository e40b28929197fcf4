"""Turn the hand-written cases into labelled JSONL; `--check` only compares with the files."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

HERE = Path(__file__).parent
MARK = "⟦"
HEADER = re.compile(r"^%% (?P<kind>[a-z-]+) \| (?P<note>[^|]+?)(?P<ambiguous> \| ambiguous)?$")
# folder of sources, file to write, permitted length of a text in characters
SETS = (
    ("cases", "labelled.jsonl", (40, 1500)),
    ("wild", "wild.jsonl", (1000, 4000)),
    ("fresh", "fresh.jsonl", (40, 1500)),
    ("blind", "blind.jsonl", (40, 1500)),
    ("blind2", "blind2.jsonl", (40, 1500)),
    ("blind3", "blind3.jsonl", (40, 1500)),
)
SHINGLE_WORDS = 5
MAX_SHARED_SHINGLES = 0.25


@dataclass(frozen=True)
class Case:
    id: str
    text: str
    starts: list[int]
    kind: str
    note: str
    ambiguous: bool = False

    def to_json(self) -> str:
        row = asdict(self)
        if not self.ambiguous:
            del row["ambiguous"]
        return json.dumps(row, ensure_ascii=False)


def split_marks(marked: str) -> tuple[str, list[int]]:
    """Text without marks, and the offsets at which attempts start (0 always first)."""
    pieces = marked.split(MARK)
    starts, length = [0], 0
    for piece in pieces[:-1]:
        length += len(piece)
        starts.append(length)
    return "".join(pieces), starts


def read_cases(path: Path) -> Iterator[Case]:
    blocks = re.split(r"(?m)^(?=%% )", path.read_text(encoding="utf-8"))
    for number, block in enumerate(filter(str.strip, blocks), start=1):
        header, _, body = block.partition("\n")
        match = HEADER.match(header)
        if match is None:
            raise SystemExit(f"{path.name}: bad header: {header}")
        text, starts = split_marks(body.strip("\n"))
        yield Case(
            id=f"{path.stem}-{number:03d}",
            text=text,
            starts=starts,
            kind=match["kind"],
            note=match["note"],
            ambiguous=bool(match["ambiguous"]),
        )


def complaints(case: Case, limits: tuple[int, int]) -> Iterator[str]:
    low, high = limits
    if not low <= len(case.text) <= high:
        yield f"{case.id}: {len(case.text)} characters, outside {low}-{high}"
    if case.starts != sorted(set(case.starts)):
        yield f"{case.id}: starts are not increasing: {case.starts}"
    if any(case.text[at : at + 1].strip() == "" for at in case.starts):
        yield f"{case.id}: a start stands on white space"
    if case.kind.startswith("pos-") != (len(case.starts) > 1) and not case.ambiguous:
        yield f"{case.id}: kind {case.kind} with {len(case.starts)} attempts"


def shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return set(zip(*(words[i:] for i in range(SHINGLE_WORDS)), strict=False))


def near_duplicates(cases: list[Case]) -> Iterator[str]:
    """Pairs that share more word sequences than two texts written apart would."""
    parts = {case.id: shingles(case.text) for case in cases}
    for one, other in combinations(parts, 2):
        smaller = min(len(parts[one]), len(parts[other]))
        shared = len(parts[one] & parts[other])
        if smaller and shared / smaller > MAX_SHARED_SHINGLES:
            yield f"{one} and {other}: {shared} of {smaller} word sequences in common"


def build(folder: str, limits: tuple[int, int]) -> list[Case]:
    cases = [case for path in sorted((HERE / folder).glob("*.txt")) for case in read_cases(path)]
    problems = [line for case in cases for line in complaints(case, limits)]
    problems += near_duplicates(cases)
    if problems:
        raise SystemExit("\n".join(problems))
    return cases


def print_counts(name: str, cases: list[Case]) -> None:
    restarted = sum(len(case.starts) > 1 for case in cases)
    ambiguous = sum(case.ambiguous for case in cases)
    print(f"{name}: {len(cases)} texts, {restarted} with a restart, {ambiguous} ambiguous")
    for kind, count in sorted(Counter(case.kind for case in cases).items()):
        print(f"  {kind:<18}{count:>4}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if a file is out of date")
    check = parser.parse_args().check
    for folder, name, limits in SETS:
        cases = build(folder, limits)
        content = "".join(case.to_json() + "\n" for case in cases)
        target = HERE / name
        if not check:
            target.write_text(content, encoding="utf-8")
        elif not target.exists() or target.read_text(encoding="utf-8") != content:
            sys.exit(f"{name} is out of date: run build.py")
        print_counts(name, cases)


if __name__ == "__main__":
    main()
