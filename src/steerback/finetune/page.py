"""The report of a comparison: every model's run on one page, and what training changed in front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from steerback.finetune import analysis, design
from steerback.finetune.compare import MAIN, Wanted
from steerback.finetune.evidence import HELD_OUT, UNSEEN, Evidence, read
from steerback.protocols.base import Analysis
from steerback.report.gather import Experiment, gather
from steerback.report.page import Written, write_runs


def write(wanted: Wanted) -> tuple[Evidence, Analysis, Written]:
    """Read the runs back, and write `report.html` into the comparison's folder."""
    models = wanted.models()
    evidence = read(wanted.folder, models)
    found = analysis.analyse(evidence, wanted.tuned)
    runs = [gather(wanted.place(model, MAIN)) for model in models]
    first = Experiment(design.NAME, analysis.ASKS, found)
    runs[0] = replace(runs[0], experiments=(first, *runs[0].experiments))
    return evidence, found, write_runs(runs, wanted.folder / "report.html")


def headline(evidence: Evidence) -> Sequence[tuple[str, str, str]]:
    """(contrast, arm, the paired difference of ESR in points) as text."""
    lines = []
    for a, b in evidence.contrasts():
        for arm in (UNSEEN, HELD_OUT):
            found = evidence.difference(a, b, arm, "esr")
            if found is not None:
                d = found.difference
                said = f"{100 * d.value:+.1f} [{100 * d.low:.1f}, {100 * d.high:.1f}]"
                lines.append((f"{b} against {a}", arm, said))
    return lines
