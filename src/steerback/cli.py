"""The command line: parses, calls, prints. One verb per function."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from steerback import vector_commands
from steerback.errors import UserError
from steerback.finetune import command as finetune_commands

app = typer.Typer(
    help="Measure whether a language model steers back when it is pushed off course from inside.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
organism_app = typer.Typer(help="Model organisms: make them, check them.", no_args_is_help=True)
app.add_typer(organism_app, name="organism")
app.add_typer(vector_commands.app, name="vectors")
app.add_typer(finetune_commands.app, name="finetune")
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

RunFolder = Annotated[Path, typer.Argument(help="Folder of the run.")]
MadeFolder = Annotated[
    Path | None,
    typer.Option(help="Folder that `steerback organism train` wrote to; else the packaged ones."),
]
JudgePrompt = Annotated[
    Path | None, typer.Option("--judge-prompt", help="File with a judge prompt of your own.")
]
QuantizeOption = Annotated[
    str | None, typer.Option(help="Instead of the file's: none, int8, fp8 or int4.")
]
DeviceMapOption = Annotated[
    str | None, typer.Option(help="Instead of the file's: auto, balanced, sequential.")
]
EngineOption = Annotated[
    str | None, typer.Option(help="Instead of the file's: hf, vllm, ray or http://HOST:PORT.")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print numbers as JSON instead.")]


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where the runs go.")] = Path("runs/demo"),
    latents: Annotated[int, typer.Option(min=1, help="Latents to steer with.")] = 24,
    prompts: Annotated[int, typer.Option(min=1, help="Questions per latent.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the runs.")] = 0,
) -> None:
    """The main job on the packaged organisms: steered and unsteered, with intervals, in minutes."""
    from steerback.demo import run_demo

    run_demo(folder, latents, prompts, seed, out)


@app.command()
def run(
    config: Annotated[
        str,
        typer.Argument(
            help="TOML file (`steerback init` writes one), a preset, or `suite`: every protocol."
        ),
    ],
    judge_prompt: JudgePrompt = None,
    dry_model: Annotated[
        bool, typer.Option("--dry-model", help="Rehearse with a small model of random weights.")
    ] = False,
    quantize: QuantizeOption = None,
    device_map: DeviceMapOption = None,
    engine: EngineOption = None,
    model: Annotated[
        str | None, typer.Option(help="Of the suite: a preset, or `organism`: packaged ones.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The suite in a minute or two.")] = False,
    folder: Annotated[
        Path | None, typer.Option(help="Of the suite: where its runs go; else runs/suite.")
    ] = None,
) -> None:
    """Run a configuration, or every protocol there is. Run it again to resume."""
    if config == "suite":
        if judge_prompt or dry_model or quantize or device_map or engine:
            raise UserError(
                "the suite takes --model, --quick and --folder; the rest is the preset's"
            )
        _run_suite(model or "organism", folder or Path("runs/suite"), quick)
        return
    if model or quick or folder:
        raise UserError("--model, --quick and --folder are for `steerback run suite`")
    from steerback import protocols
    from steerback.config import load_or_preset, placed
    from steerback.console import Terminal, headline
    from steerback.run import run as run_config

    resolved = load_or_preset(config, protocols.settings())
    resolved = placed(resolved, quantize, device_map, engine)
    if judge_prompt is not None:
        judging = resolved.judging.model_copy(update={"prompt": str(judge_prompt)})
        resolved = resolved.model_copy(update={"judging": judging})
    if dry_model:
        from steerback.dry import rehearsal

        resolved = rehearsal(resolved)
    with Terminal(out) as ui:
        found = run_config(resolved, ui)
    out.print(headline(s for a in found.values() for s in a.summaries))
    out.print(f"stored in {resolved.place}", soft_wrap=True)


def _run_suite(model: str, folder: Path, quick: bool) -> None:
    from steerback import suite
    from steerback.console import Terminal, headline
    from steerback.report.page import write_report
    from steerback.truths import show

    with Terminal(out) as ui:
        finished = suite.run_suite(model, folder, quick=quick, ui=ui)
    main = [f.found[n] for f in finished for n in ("baseline", "esr") if n in f.found]
    out.print(headline(s for analysis in main for s in analysis.summaries))
    for line in suite.said(finished):
        out.print(line, markup=False, soft_wrap=True)
    if known := suite.known(finished):
        show(known, out)
    page = write_report([f.config.place for f in finished], folder / "report.html").path
    out.print(f"report: {page}", soft_wrap=True)


@app.command()
def plan(
    config: Annotated[str, typer.Argument(help="TOML file or preset, as for `steerback run`.")],
    measured: Annotated[
        Path | None, typer.Option(help="Run whose speed and length of responses are taken.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=1e-9, help="Tokens per second of one engine, instead.")
    ] = None,
    engines: Annotated[int, typer.Option(min=1, help="Engines that work side by side.")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of each engine.")] = 1.0,
    as_json: JsonFlag = False,
) -> None:
    """Trials, tokens, judge calls and GPU-hours of a run, before it is begun."""
    from steerback import estimate, protocols
    from steerback.config import load_or_preset

    if measured is not None and rate is not None:
        raise UserError("give --measured or --rate, not both")
    resolved = load_or_preset(config, protocols.settings())
    found = estimate.parts(resolved)
    judged = estimate.Judged.of(resolved, found)
    speed = None if measured is None else estimate.Rate.of(measured)
    if rate is not None:
        speed = estimate.Rate(rate, None, "as given")
    if as_json:
        typer.echo(json.dumps(estimate.as_json(found, judged, speed, engines, gpus), indent=2))
    else:
        estimate.show(found, judged, speed, engines, gpus, out)


@app.command()
def serve(
    config: Annotated[str, typer.Argument(help="TOML file or preset, as for `steerback run`.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    show: Annotated[
        bool, typer.Option("--show", help="Print vLLM's command line instead.")
    ] = False,
) -> None:
    """Serve a run's model with vLLM, to be used with `run --engine http://HOST:PORT`."""
    from steerback import protocols
    from steerback.config import load_or_preset
    from steerback.lab import serving

    line = [
        *serving(load_or_preset(config, protocols.settings())),
        "--host",
        host,
        "--port",
        str(port),
    ]
    if show:
        typer.echo(shlex.join(line))
        return
    chosen = {"VLLM_PLUGINS": "steerback", "VLLM_USE_V2_MODEL_RUNNER": "0"}
    os.execve(line[0], line, {**os.environ, **chosen})


@app.command()
def init(
    model: Annotated[
        str,
        typer.Argument(help="A preset (`steerback models`), a Hugging Face id or a folder."),
    ],
    to: Annotated[
        Path | None, typer.Option("--to", help="File to write; else standard output.")
    ] = None,
    sae: Annotated[str, typer.Option(help="SAE, where the model is no preset.")] = "",
    layer: Annotated[int, typer.Option(help="Layer to steer, where it is no preset.")] = -1,
    sae_layer: Annotated[
        int, typer.Option(help="Layer that the SAE was trained on; -1: the steered one.")
    ] = -1,
) -> None:
    """Write a commented configuration for a model."""
    from steerback import protocols
    from steerback.config import dump_commented, start

    known = protocols.settings()
    config = start(model, known, sae=sae, layer=layer, sae_layer=sae_layer)
    text = dump_commented(config, known)
    if to is None:
        typer.echo(text)
    elif to.exists():
        raise UserError(f"{to} exists; choose another name or delete it first")
    else:
        to.write_text(text, encoding="utf-8")
        out.print(f"wrote {to}; run it with: steerback run {to}", soft_wrap=True)


@app.command()
def models(
    slots: Annotated[
        int | None, typer.Option(min=1, help="Trials at the same time; else each preset's.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """The models that are known by name, the memory they need, and what fits this machine."""
    from steerback.memory import machine
    from steerback.overview import entries, show

    found = entries(slots)
    if as_json:
        typer.echo(json.dumps([e.as_json(machine()) for e in found], indent=2))
    else:
        show(found, out)


@app.command()
def status(folder: RunFolder, as_json: JsonFlag = False) -> None:
    """What of a run is done, failed and left, and how fast it goes."""
    from steerback.status import describe, show

    facts = describe(folder)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        show(facts, out)


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
    from steerback.report.numbers import summaries

    if as_json:
        found = summaries(folders, judge)
        typer.echo(json.dumps([s.as_json() for s in found], indent=2, allow_nan=False))
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


@app.command()
def steer(
    model: Annotated[str, typer.Argument(help="A preset, a Hugging Face id or a folder.")],
    question: Annotated[str, typer.Argument(help="What to ask.")],
    latent: Annotated[list[int], typer.Option(help="Latent to add; may be given several times.")],
    strength: Annotated[float, typer.Option(help="Steering strength.")],
    unit: Annotated[str, typer.Option(help="raw or resid (median residual norms).")] = "raw",
    sae: Annotated[str, typer.Option(help="SAE, where the model is no preset.")] = "",
    layer: Annotated[int, typer.Option(help="Layer to steer; -1: the preset's.")] = -1,
    readout_layer: Annotated[int, typer.Option(help="Layer that is read; -1: the SAE's.")] = -1,
    positions: Annotated[str, typer.Option(help="generated, all or from:N.")] = "generated",
    watch: Annotated[list[int], typer.Option(help="Latents to watch besides.")] = [],  # noqa: B006
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampling.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.6,
    compare: Annotated[bool, typer.Option(help="Show the unsteered answer beside it.")] = False,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    quantize: Annotated[str, typer.Option(help="none, int8, fp8 or int4.")] = "none",
    device_map: Annotated[
        str | None, typer.Option(help="Over several devices: auto, balanced, sequential.")
    ] = None,
) -> None:
    """Ask one question of a steered model and watch it answer."""
    from steerback.memory import known_quantisation
    from steerback.types import Sampling
    from steerback.workbench import Request, show

    request = Request(
        model=model,
        question=question,
        latents=tuple(latent),
        strength=strength,
        unit=unit,
        sae=sae,
        layer=None if layer < 0 else layer,
        readout_layer=None if readout_layer < 0 else readout_layer,
        positions=positions,
        watch=tuple(watch),
        seed=seed,
        sampling=Sampling(temperature=temperature, max_new_tokens=max_new_tokens),
        compare=compare,
        dtype=dtype,
        device=device,
        quantize=known_quantisation(quantize),
        device_map=device_map,
    )
    show(request, out)


@app.command()
def power(
    before: Annotated[float, typer.Argument(help="Rate without the change, 0-1.")],
    after: Annotated[float, typer.Argument(help="Rate with it, 0-1.")],
    icc: Annotated[float, typer.Option(help="Intraclass correlation of a latent's trials.")] = 0.1,
    pair_correlation: Annotated[
        float, typer.Option(help="Correlation of the two trials of a pair, given the latent.")
    ] = 0.3,
    target: Annotated[float, typer.Option(help="Power wanted.")] = 0.8,
    as_json: JsonFlag = False,
) -> None:
    """How many latents and prompts a paired comparison needs to see a change of a rate."""
    from dataclasses import asdict

    from steerback.console import power_table
    from steerback.stats import power as simulate

    found = simulate(before, after, icc=icc, pair_correlation=pair_correlation, target=target)
    out.print_json(data=asdict(found)) if as_json else out.print(power_table(found))


@organism_app.command("list")
def organism_list() -> None:
    """The packaged model organisms."""
    from steerback import organism

    for name in organism.names():
        out.print(f"{name:20} {organism.path(name)}", soft_wrap=True)


@organism_app.command("train")
def organism_train(
    name: Annotated[str, typer.Argument(help="Name of the recipe.")],
    to: Annotated[Path, typer.Option("--out", help="Folder to write it to.")] = Path("organisms"),
    seed: Annotated[int | None, typer.Option(help="Instead of the recipe's own.")] = None,
) -> None:
    """Make an organism from its recipe, the same every time. Run it again to resume."""
    from steerback import organism

    out.print(f"made {organism.train(name, to, seed=seed, report=out.print)}")


@organism_app.command("card")
def organism_card(
    name: Annotated[str, typer.Argument(help="Organism.")],
    made: MadeFolder = None,
) -> None:
    """Write an organism's model card: how it was made, and twenty answers that nobody chose."""
    from steerback.organism.card import write_card

    out.print(f"wrote {write_card(name, made)}", soft_wrap=True)


@organism_app.command("check")
def organism_check(
    names: Annotated[
        list[str] | None, typer.Argument(help="Organisms; else all of which something is expected.")
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where the runs go.")] = Path("runs/check"),
    latents: Annotated[int, typer.Option(min=1, help="Latents to steer with.")] = 24,
    prompts: Annotated[int, typer.Option(min=1, help="Questions per latent.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the runs.")] = 0,
    made: MadeFolder = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure organisms against what they were made to show. Exit code 1 if one does not."""
    from steerback import organism
    from steerback.console import Terminal, findings
    from steerback.organism.check import check

    with Terminal(err if as_json else out) as ui:
        wanted = names or organism.checked()
        found = check(wanted, folder, latents=latents, prompts=prompts, seed=seed, made=made, ui=ui)
    if as_json:
        typer.echo(json.dumps([f.as_json() for f in found], indent=2))
    else:
        out.print(findings(found))
    if not all(f.met for f in found):
        raise typer.Exit(1)


@organism_app.command("truths")
def organism_truths(
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs on organisms.")],
    as_json: JsonFlag = False,
) -> None:
    """What is known of the organisms from how they were made, beside what runs found."""
    from steerback.truths import answers_of, show

    found = [answer for folder in folders for answer in answers_of(folder)]
    if as_json:
        typer.echo(json.dumps([a.as_json() for a in found], indent=2))
    else:
        show(found, out)


@app.command()
def doctor() -> None:
    """What is installed and found on this machine, and what to do about what is not."""
    from steerback.doctor import checks

    for check in checks():
        mark = "[green]ok [/green]" if check.ok else "[yellow]-- [/yellow]"
        out.print(f"{mark} {check.what}: {check.found}")
        if check.remedy:
            out.print(f"     {check.remedy}", style="dim")


def _quiet() -> None:
    """Libraries report to the log, not over our progress bars."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("transformers").setLevel(logging.ERROR)


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line. A user's mistake is one line on standard error and exit code 2."""
    _quiet()
    try:
        # an Exit raised by a command comes back as its code
        if code := app(args=arguments, standalone_mode=False):
            sys.exit(code)
    except UserError as error:
        err.print(f"error: {error}", style="bold red", markup=False, soft_wrap=True)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        err.print(
            "interrupted; what is finished is stored, and the same command goes on from there"
        )
        sys.exit(130)
    except Exception as error:
        usage = getattr(error, "format_message", None)
        if usage is None:
            raise
        err.print(f"error: {usage()}", style="bold red", markup=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
