"""Fits the weights of `steerback.judge.learned` to all labelled texts.

    python learn.py              # writes src/steerback/data/restarts_learned.json
    python learn.py --hold NAME  # fits without one set (fresh, ...), scores that, and writes nothing

Logistic regression with a quadratic penalty, features that occur in two sentences or more, weights below
0.02 dropped, three decimals. The first sentence of a text is left out: it cannot restart anything.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))

from segment import measure, show

from steerback.judge import learned
from steerback.judge.learned import Learned, features, sentences
from steerback.judge.patterns import packaged
from steerback.judge.prose import prose

HERE = Path(__file__).parent
LISTS = HERE.parent / "segment"
INTO = Path(learned.__file__).parents[1] / "data" / "restarts_learned.json"
BEFORE, AFTER = (
    "Fold the sheet in half. Press the crease. ",
    (" Use the other edge.", " It is thin."),
)
PENALTY, LEAST, ENOUGH, HINT = 1.0, 0.02, 1.2, 0.3

MEASURE = "blind3"
"""The set that neither phrases nor weights are made from: what it says is what to expect."""

Example = tuple[set[str], bool]
Text = tuple[str, list[int]]


def texts(without: str = "") -> list[Text]:
    """(text, offsets of restarts) of every set but one, and of the lists of single restarts."""
    found: list[Text] = []
    for path in sorted(HERE.glob("*.jsonl")):
        if path.stem not in (without, MEASURE):
            cases = map(json.loads, path.read_text("utf-8").splitlines())
            found += [(c["text"], c["starts"][1:]) for c in cases if not c.get("ambiguous")]
    for name, counts in (("counts", True), ("does_not_count", False)):
        lines = (LISTS / f"{name}.txt").read_text("utf-8").splitlines()
        starts = [len(BEFORE)] if counts else []
        # what counts for nothing counts twice: a false alarm costs more than a miss
        ends = AFTER[:1] if counts else AFTER
        found += [(BEFORE + x.strip() + end, starts) for x in lines if x.strip() for end in ends]
    return found


def examples(text: str, starts: list[int]) -> Iterator[Example]:
    """The sentences after the first, and whether a restart begins in each."""
    view = prose(text)
    cut = sentences(view.text)
    for n, s in enumerate(cut[1:], 1):
        after = view.text[cut[n + 1].start : cut[n + 1].end] if n + 1 < len(cut) else ""
        first, last = view.origin(s.start), view.origin(s.end - 1)
        rejects = any(first - 3 <= start <= last for start in starts)
        yield features(view.text[s.start : s.end], after), rejects


def fit(found: list[Example]) -> Learned:
    counts = Counter(f for sentence, _ in found for f in sentence)
    names = sorted(f for f, n in counts.items() if n > 1)
    place = {name: n for n, name in enumerate(names)}
    rows, columns = zip(
        *((r, place[f]) for r, (s, _) in enumerate(found) for f in sorted(s) if f in place),
        strict=True,
    )
    x = torch.sparse_coo_tensor(
        torch.tensor([rows, columns]),
        torch.ones(len(rows), dtype=torch.float64),
        (len(found), len(names)),
        check_invariants=True,
    ).coalesce()
    y = torch.tensor([float(rejects) for _, rejects in found], dtype=torch.float64)
    w = torch.zeros(len(names), dtype=torch.float64, requires_grad=True)
    b = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([w, b], max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        odds = torch.sparse.mm(x, w[:, None])[:, 0] + b
        log_loss = torch.nn.functional.binary_cross_entropy_with_logits(odds, y, reduction="sum")
        total = log_loss + PENALTY * (w**2).sum()
        total.backward()
        return total

    optimizer.step(loss)
    values = w.detach().numpy().round(3)
    weights = {n: float(v) for n, v in zip(names, values, strict=True) if abs(v) >= LEAST}
    return Learned(weights, round(float(b.item()), 3), ENOUGH, HINT)


def digest(found: list[Text]) -> str:
    return hashlib.sha256(json.dumps(found, ensure_ascii=False).encode()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--hold", default="", help="a set to leave out and score")
    hold = parser.parse_args().hold
    found = texts(without=hold)
    model = fit([e for text, starts in found for e in examples(text, starts)])
    if hold:
        case = HERE / f"{hold}.jsonl"
        show(measure(case, replace(packaged(), learned=model)), misses=False)
        return
    INTO.write_text(learned.dump(model, digest(found)), encoding="utf-8")
    print(f"{len(model.weights)} weights from {len(found)} texts: {INTO.name}")


if __name__ == "__main__":
    main()
