"""The demo: the main job on each packaged organism of the story, and three transcripts."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from steerback import organism, protocols
from steerback.config import from_preset
from steerback.console import Terminal, examples, headline, transcript
from steerback.lab import labels_of
from steerback.records import Records
from steerback.report.page import write_report
from steerback.run import run
from steerback.stats import Summary
from steerback.store import Store

STORY = ("naive", "imitator", "resister")
"""Never saw a correction; saw corrections; was corrected while it was pushed."""
TRANSCRIPTS = 3


def run_demo(folder: Path, latents: int, prompts: int, seed: int, out: Console) -> None:
    """Baseline and ESR on the organisms; the table, three transcripts and where it all is."""
    found: list[Summary] = []
    names = [name for name in STORY if name in organism.names()]
    with Terminal(out) as ui:
        for name in names:
            amount = {"prompts_per_direction": prompts}
            config = from_preset(
                f"organism-{name}",
                protocols.settings(),
                folder=str(folder / name),
                seed=seed,
                directions={"count": latents},
                settings={"baseline": amount, "esr": amount},
            )
            found += [s for a in run(config, ui).values() for s in a.summaries]
    out.print(headline(found))
    with Store.open(folder / names[-1], mode="ro") as store:
        labels = labels_of(config)
        for record in examples(Records(store).of("esr"), TRANSCRIPTS):
            add = record.trial.steered_by
            out.print(transcript(record, labels[add.index].text if add else ""))
    written = write_report([folder])
    out.print(f"report: {written.path} (numbers: steerback report {folder} --json)")
