"""What is done with a finished run: report, crossjudge, export, import, replay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from steerback.commands.options import JsonFlag, JudgePrompt, RunFolder, err, out

app = typer.Typer()


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold runs.")],
    as_json: JsonFlag = False,
    judge: Annotated[str, typer.Option(help="Judge whose verdicts count.")] = "",
    page: Annotated[
        Path | None, typer.Option("--out", help="Page to write; else report.html by the runs.")
    ] = None,
) -> None:
    """One page about one or several runs, with figures and transcripts; or their numbers."""
    from steerback.console import headline

    if as_json:
        from steerback.report.rows import rows

        typer.echo(json.dumps(rows(folders, judge), indent=2, allow_nan=False))
        return
    from steerback.report.page import write_report

    made = write_report(folders, page, judge)
    out.print(headline(made.summaries))
    out.print(f"report: {made.path}", soft_wrap=True)


@app.command()
def crossjudge(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold runs.")],
    judges: Annotated[
        str, typer.Option(help="Judges to ask, separated by commas: exact,openai/gpt-4.1,...")
    ] = "",
    per_model: Annotated[
        int, typer.Option(min=0, help="Trials of one attempt per model; all others are regraded.")
    ] = 100,
    human: Annotated[list[Path], typer.Option(help="CSV of human labels, one more judge.")] = [],  # noqa: B006
    sheet: Annotated[
        Path | None, typer.Option(help="Write the sample as a CSV to label by hand, and stop.")
    ] = None,
    judge_prompt: JudgePrompt = None,
    mode: Annotated[str, typer.Option(help="verify or trust; else as the run.")] = "",
    calls: Annotated[int | None, typer.Option(min=1, help="Most calls to a provider.")] = None,
    base_url: Annotated[str, typer.Option(help="OpenAI-compatible server.")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would take: calls and tokens.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sample.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Regrade a sample of runs with other judges and say how far they agree. Run it again to resume."""
    from steerback.crossjudge import command
    from steerback.crossjudge.regrade import Wanted

    names = tuple(name.strip() for name in judges.split(",") if name.strip())
    settings = {"mode": mode, "calls": calls, "base_url": base_url, "prompt": judge_prompt}
    work = command.Work(
        folders=tuple(folders),
        wanted=Wanted(names, per_model, seed, tuple(human)),
        settings={k: str(v) if k == "prompt" else v for k, v in settings.items() if v},
        say=(err if as_json else out).print,
    )
    if sheet is not None:
        out.print(f"wrote {command.sheet(work, sheet):,} responses to {sheet}", soft_wrap=True)
    elif dry_run:
        for line in command.dry_run(work):
            out.print(line, soft_wrap=True)
    elif as_json:
        typer.echo(json.dumps(command.as_json(command.run(work)), indent=2, allow_nan=False))
    else:
        command.show(command.run(work), out)


@app.command()
def export(
    folder: RunFolder,
    to: Annotated[str, typer.Option("--to", help="jsonl, csv or parquet.")] = "jsonl",
    file: Annotated[Path | None, typer.Option("--file", help="File to write.")] = None,
) -> None:
    """Write a run's trials to a file for other programs."""
    from steerback.table import export as write

    out.print(f"wrote {write(folder, to, file)}", soft_wrap=True)


@app.command("import")
def import_results(
    files: Annotated[list[Path], typer.Argument(help="Result files of the published code.")],
    to: Annotated[Path, typer.Option("--to", help="Folder of the run.")],
) -> None:
    """Read results of the published code (JSON, or JSONL with one trial per line) into a run."""
    from steerback.imports import import_results as read

    found = read(files, to)
    scored = ", ".join(f"{n:,} {status}" for status, n in sorted(found.statuses.items()))
    out.print(f"{found.trials:,} trials: {scored or 'none'}")
    out.print(
        f"{found.new:,} new, {found.repeated:,} stored before, {found.conflicts:,} stored before with "
        f"another response; {found.failed_latents:,} latents without trials",
        soft_wrap=True,
    )
    out.print(f"report: steerback report {to}", soft_wrap=True)


@app.command()
def replay(
    folder: RunFolder,
    key: Annotated[str, typer.Argument(help="Trial key, or its beginning.")],
) -> None:
    """Make a stored trial again and say whether its text is the same. Exit code 1 if it is not."""
    from steerback import replay as replays

    found = replays.replay(folder, key)
    replays.show(found, out)
    if not found.same:
        raise typer.Exit(1)
