"""How far the judges of a sample agree: tables for the report, the terminal and JSON."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from steerback.crossjudge.grades import Grade, grade_of
from steerback.crossjudge.regrade import ARTIFACT
from steerback.judge.verify import read_notes
from steerback.protocols.base import Analysis, Entry, Sheet, TrialKey
from steerback.records import Record, Records
from steerback.stats import Mean, cluster_rate, cohen_kappa, correlation, fleiss_kappa
from steerback.store import Store
from steerback.types import CALIBRATION, Rate

NAME = "crossjudge"
ASKS = "Would other judges, or people, have told the same story?"
SHOWN = 100
"""Most trials listed on which judges differ."""
KINDS = ("one attempt", "improved", "not improved", "several, no scores")
MISSING = "no valid score"


@dataclass(frozen=True)
class Panel:
    """The sample as its judges see it."""

    records: tuple[Record, ...]
    judges: tuple[str, ...]
    """The run's own first."""
    grades: dict[str, dict[str, Grade | None]]
    """Judge -> trial key -> grade; None: no valid score."""

    def pairs(self, a: str, b: str) -> list[tuple[Record, Grade, Grade]]:
        """Trials that both judges graded."""
        return [
            (r, x, y)
            for r in self.records
            if (x := self.grades[a].get(r.trial.key)) and (y := self.grades[b].get(r.trial.key))
        ]


def analyse(store: Store) -> Analysis:
    """Empty if no sample of the run was regraded."""
    panel = read_panel(store)
    if panel is None or len(panel.judges) < 2:
        return Analysis()
    return Analysis(
        sheets=(
            _judges(store, panel),
            _pairs(panel),
            *_everybody(panel),
            *(_confusion(panel, a, b) for a, b in combinations(panel.judges, 2)),
            *_differences(panel),
        )
    )


def read_panel(store: Store) -> Panel | None:
    noted = store.get_artifact(ARTIFACT)
    if noted is None:
        return None
    own, keys = Records(store, noted["judges"][0]), set(noted["keys"])
    protocols = sorted({c.protocol for c in store.counts()} - {CALIBRATION})
    records = tuple(r for p in protocols for r in own.of(p) if r.trial.key in keys)
    grades: dict[str, dict[str, Grade | None]] = {}
    for judge in noted["judges"]:
        verdicts = store.verdicts(judge)
        grades[judge] = {r.trial.key: grade_of(r, verdicts.get(r.trial.key)) for r in records}
    for name, labels in noted["human"].items():
        grades[name] = {key: Grade(**label) for key, label in labels.items()}
    return Panel(records, tuple(grades), grades)


def _judges(store: Store, panel: Panel) -> Sheet:
    rows: list[tuple[Entry, ...]] = []
    for judge in panel.judges:
        graded = [(r, g) for r in panel.records if (g := panel.grades[judge].get(r.trial.key))]
        verdicts = [store.verdicts(judge).get(r.trial.key) for r in panel.records]
        status = Counter(v.status for v in verdicts if v)
        notes = [n for v in verdicts if v and (n := read_notes(v.raw))]
        multi = [(r, g) for r, g in graded if g.multi and g.improved is not None]
        rows.append(
            (
                judge,
                len(graded),
                status["unscored"],
                status["error"],
                _rate([(r, g.multi) for r, g in graded]),
                _rate([(r, bool(g.improved)) for r, g in multi]),
                sum(len(n.rejected) for n in notes) if notes else None,
                sum(len(n.missed) for n in notes) if notes else None,
            )
        )
    return Sheet(
        "The judges",
        ("judge", "graded", "unscored", "errors", "several attempts", "improved, of those",
         "boundaries rejected", "boundaries missed"),
        tuple(rows),
        (
            f"A sample of {len(panel.records):,} trials: all in which the run's judge or the phrase "
            "list sees several attempts, and others drawn evenly from every arm. Its rates are "
            "not those of the run.",
            "Rejected: attempts that a language model claimed and the response does not bear out. "
            "Missed: restarts in the response at which it starts no attempt.",
        ),
    )  # fmt: skip


def _pairs(panel: Panel) -> Sheet:
    rows: list[tuple[Entry, ...]] = []
    for a, b in combinations(panel.judges, 2):
        both = panel.pairs(a, b)
        esr = [(r, x.esr, y.esr) for r, x, y in both if x.esr is not None and y.esr is not None]
        way = [(r, x.improved, y.improved) for r, x, y in both
               if x.improved is not None and y.improved is not None]  # fmt: skip
        scores = [(r, x.first, y.first) for r, x, y in both
                  if x.first is not None and y.first is not None]  # fmt: skip
        multi = [(r, x.multi, y.multi) for r, x, y in both]
        rows.append(
            (
                f"{a} / {b}",
                len(both),
                _agreed(multi),
                _kappa(multi),
                _agreed(esr),
                _kappa(esr),
                _agreed(way),
                _correlation(scores),
            )
        )
    return Sheet(
        "Each two judges",
        ("judges", "graded by both", "agree on several attempts", "Cohen's κ", "agree on ESR",
         "Cohen's κ of ESR", "agree on direction, where both see several",
         "correlation of first scores"),
        tuple(rows),
        ("Intervals: trials of one direction are one cluster. κ is not defined where both always say "
         "the same.",),
    )  # fmt: skip


def _everybody(panel: Panel) -> list[Sheet]:
    """Fleiss' kappa, if there are more than two: what all graded."""
    if len(panel.judges) < 3:
        return []
    everybody = [
        (r, row)
        for r in panel.records
        if all(row := [panel.grades[j].get(r.trial.key) for j in panel.judges])
    ]
    rows: list[tuple[Entry, ...]] = []
    for what in ("multi", "esr"):
        rated = [(r, [getattr(g, what) for g in row]) for r, row in everybody]
        rated = [(r, labels) for r, labels in rated if None not in labels]
        clusters = [r.trial.cluster for r, _ in rated]
        kappa = fleiss_kappa([labels for _, labels in rated], clusters) if rated else None
        same = _rate([(r, len(set(labels)) == 1) for r, labels in rated])
        name = {"multi": "several attempts", "esr": "ESR"}[what]
        rows.append((name, len(rated), same, _defined(kappa)))
    columns = ("what", "graded by all", "all say the same", "Fleiss' κ")
    return [Sheet(f"All {len(panel.judges)} judges", columns, tuple(rows))]


def _confusion(panel: Panel, a: str, b: str) -> Sheet:
    counts: Counter[tuple[str, str]] = Counter()
    for r in panel.records:
        x, y = panel.grades[a].get(r.trial.key), panel.grades[b].get(r.trial.key)
        counts[x.kind if x else MISSING, y.kind if y else MISSING] += 1
    used = [k for k in (*KINDS, MISSING) if any(k in pair for pair in counts)]
    rows: list[tuple[Entry, ...]] = [(k, *(counts[k, other] for other in used)) for k in used]
    return Sheet(f"{a} (rows) against {b} (columns)", ("", *used), tuple(rows))


def _differences(panel: Panel) -> list[Sheet]:
    """Trials on which judges differ, each with a link to its transcript."""
    rows: list[tuple[Entry, ...]] = []
    for r in panel.records:
        row = [panel.grades[j].get(r.trial.key) for j in panel.judges]
        kinds = [g.kind if g else MISSING for g in row]
        if len(set(kinds) - {MISSING}) > 1:
            rows.append((TrialKey(r.trial.key), *kinds))
    if not rows:
        return []
    notes = (f"{SHOWN} of {len(rows):,}.",) if len(rows) > SHOWN else ()
    title = "Trials on which judges differ"
    return [Sheet(title, ("trial", *panel.judges), tuple(rows[:SHOWN]), notes)]


Labelled = Sequence[tuple[Record, bool | None, bool | None]]


def _rate(hits: Sequence[tuple[Record, bool]]) -> Rate | None:
    return cluster_rate([h for _, h in hits], [r.trial.cluster for r, _ in hits]) if hits else None


def _agreed(pairs: Labelled) -> Rate | None:
    return _rate([(r, x == y) for r, x, y in pairs])


def _kappa(pairs: Labelled) -> Mean | None:
    if not pairs:
        return None
    records, a, b = zip(*pairs, strict=True)
    return _defined(cohen_kappa(a, b, [r.trial.cluster for r in records]))


def _correlation(pairs: Sequence[tuple[Record, float, float]]) -> Mean | None:
    if len(pairs) < 3:
        return None
    records, a, b = zip(*pairs, strict=True)
    clusters = [r.trial.cluster for r in records]
    return _defined(correlation(np.array(a), np.array(b), clusters))


def _defined(mean: Mean | None) -> Mean | None:
    return None if mean is None or math.isnan(mean.value) else mean
