"""What a person at a terminal sees: progress, tables, transcripts. Prints, and computes nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from rich.console import Console, Group
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from steerback.armtable import ArmTable, interval
from steerback.engine.base import Progress as EngineProgress
from steerback.judge.segment import restarts
from steerback.organism.check import Finding
from steerback.records import Record
from steerback.stats import Power, Summary
from steerback.ui import Ui

ATTEMPT_STYLES = ("on dark_red", "on dark_green", "on dark_blue", "on dark_magenta")


class Terminal(Ui):
    """Progress as a bar with rate and time left; stages as lines. For a pipe: stages only."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def stage(self, title: str) -> None:
        self._stop()
        self.console.print(title, style="bold", markup=False)

    def say(self, line: str) -> None:
        self._stop()
        self.console.print(f"  {line}", style="yellow", highlight=False, markup=False)

    def progress(self, what: str, progress: EngineProgress) -> None:
        if not self.console.is_terminal:
            return
        if self._bar is None:
            self._bar = Progress(
                TextColumn("  {task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}  {task.fields[rate]}"),
                console=self.console,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(what, rate="")
        assert self._task is not None
        left = progress.seconds_left
        rate = f"{progress.rate:,.0f} tokens/s, {clock(left)} left"
        self._bar.update(
            self._task,
            description=what,
            completed=progress.done,
            total=progress.total,
            rate=rate,
        )

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()


def clock(seconds: float) -> str:
    """1:05 or 2:03:04; a question mark for an unknown time."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


NOTE = "95% intervals in brackets; clusters: directions, or questions where nothing is steered"
GIVEN = (
    "prefilled arms have no chance level: their first attempts begin with texts that were chosen for "
    "low scores"
)


def headline(summaries: Iterable[Summary]) -> Group:
    """A table per model, or several where it does not fit; 95% intervals in brackets."""
    by_model: dict[str, list[Summary]] = {}
    for s in summaries:
        by_model.setdefault(s.model, []).append(s)
    given = any(s.prefilled for arms in by_model.values() for s in arms)
    notes = [NOTE, GIVEN] if given else [NOTE]
    return Group(*(ArmTable(name, arms) for name, arms in by_model.items()), *notes)


def transcript(record: Record, label: str = "") -> Text:
    """A response with its attempts on coloured ground and its restart phrases underlined."""
    add = record.trial.steered_by
    steering = "unsteered"
    if add is not None:
        what = f"{add.source}:{add.index}" + (f" ({label})" if label else "")
        steering = f"steered by {what} at {add.value:.3g} {add.unit}"
    out = Text()
    out.append(f"{record.trial.question}\n", style="bold")
    out.append(f"{steering}, seed {record.trial.seed}\n", style="dim")
    body = Text(record.generation.text)
    for i, attempt in enumerate(record.verdict.attempts):
        style = ATTEMPT_STYLES[min(i, len(ATTEMPT_STYLES) - 1)]
        body.stylize(style, attempt.start, attempt.end)
    for restart in restarts(record.generation.text):
        body.stylize("bold underline", restart.start, restart.end)
    out.append_text(body)
    scores = ["–" if a.score is None else f"{a.score:.0f}" for a in record.verdict.attempts]
    out.append(f"\nscores: {' then '.join(scores)}\n", style="dim")
    return out


def plain(text: str) -> str:
    """One line of text, control characters left out."""
    return re.sub(r"[\x00-\x1f\x7f]+", " ", text).strip()


def examples(records: Iterable[Record], count: int) -> Sequence[Record]:
    """The first trials that restarted and improved, a direction each, and last the first that did not
    restart."""
    by_cluster: dict[str, Record] = {}
    never: list[Record] = []
    for record in records:
        if record.outcome.esr:
            by_cluster.setdefault(record.outcome.cluster, record)
        elif record.outcome.multi is False and not never:
            never.append(record)
    return [*list(by_cluster.values())[: count - len(never)], *never]


def power_table(found: Power) -> Group:
    """Power by number of latents (rows) and prompts per latent (columns)."""
    prompts = sorted({d.prompts for d in found.grid})
    table = Table(title="power", title_justify="left")
    table.add_column("latents \\ prompts each")
    for n in prompts:
        table.add_column(str(n), justify="right")
    for latents in sorted({d.latents for d in found.grid}):
        cells = {d.prompts: f"{d.power:.2f}" for d in found.grid if d.latents == latents}
        table.add_row(str(latents), *(cells.get(n, "") for n in prompts))
    best = found.smallest
    line = f"no design of the grid reaches a power of {found.target:g}"
    if best is not None:
        line = (
            f"smallest with power {found.target:g}: {best.latents} latents x {best.prompts} prompts "
            f"= {best.trials} trials per arm (power {best.power:.2f})"
        )
    return Group(table, line)


VERDICTS = (
    "met: the estimate lies in the range; open: it does not, but its 95% interval reaches into it; "
    "missed: nor does that. The exit code goes by the estimate: 0 if all are met, else 1."
)


def findings(found: Sequence[Finding]) -> Group:
    """What organisms show beside what they are to show, and a verdict in words for each."""
    table = Table(title="organisms", title_justify="left")
    for column in ("organism", "measure"):
        table.add_column(column)
    for column in ("found", "wanted", "n"):
        table.add_column(column, justify="right")
    table.add_column("verdict", no_wrap=True)
    for f in found:
        style = "" if f.met else "bold red"
        value = interval(f.value, f.low, f.high, 1)
        wanted = f"{f.least:g} to {f.most:g}"
        table.add_row(f.organism, f.measure, value, wanted, str(f.n), f.verdict, style=style)
    verdicts = [f.verdict for f in found]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts))
    return Group(table, counts, VERDICTS)
