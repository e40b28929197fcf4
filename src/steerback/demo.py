"""The demo: the main job on each packaged organism of the story, and three transcripts."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from steerback import organism
from steerback.console import Terminal, examples, headline, transcript
from steerback.organism.check import measure
from steerback.records import Records
from steerback.report.page import write_report
from steerback.stats import Summary
from steerback.store import Store

STORY = ("naive", "imitator", "resister")
"""Never saw a correction; saw corrections; was corrected while it was pushed."""
TRANSCRIPTS = 3
CHOSEN = (
    "Transcripts of {}, chosen by what happened: restarted and improved, and last one that did not. "
    "How often each happens stands in the table."
)


def run_demo(folder: Path, latents: int, prompts: int, seed: int, out: Console) -> None:
    """Baseline and ESR on the organisms; the table, three transcripts and where it all is."""
    found: list[Summary] = []
    names = [name for name in STORY if name in organism.names()]
    with Terminal(out) as ui:
        for name in names:
            measured = measure(name, folder, latents, prompts, seed, ui)
            found += [s for analysis in measured.values() for s in analysis.summaries]
    out.print(headline(found))
    with Store.open(folder / names[-1], mode="ro") as store:
        labels = {label.index: label.label for label in organism.labels(names[-1])}
        out.print(CHOSEN.format(names[-1]), soft_wrap=True)
        for record in examples(Records(store).of("esr"), TRANSCRIPTS):
            add = record.trial.steered_by
            out.print(transcript(record, labels[add.index] if add else ""))
    written = write_report([folder])
    out.print(f"report: {written.path} (numbers: steerback report {folder} --json)", soft_wrap=True)
