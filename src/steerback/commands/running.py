"""`steerback run` and what surrounds it: demo, plan, serve, init, models, status."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from steerback.commands.options import (
    DeviceMapOption,
    EngineOption,
    JsonFlag,
    JudgePrompt,
    QuantizeOption,
    RunFolder,
    out,
)
from steerback.errors import UserError
from steerback.outfile import refuse_taken, written

app = typer.Typer()


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
    from steerback.console import Terminal, headline
    from steerback.presets import load_or_preset, placed
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
    from steerback.presets import load_or_preset

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
    from steerback.lab import serving
    from steerback.presets import load_or_preset

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
    layer: Annotated[
        int | None, typer.Option(min=0, help="Layer to steer, where it is no preset.")
    ] = None,
    sae_layer: Annotated[
        int | None, typer.Option(min=0, help="Layer the SAE was trained on; else the steered one.")
    ] = None,
) -> None:
    """Write a commented configuration for a model."""
    from steerback import protocols
    from steerback.presets import dump_commented, start

    if to is not None:
        refuse_taken(to)
    known = protocols.settings()
    config = start(model, known, sae=sae, layer=layer, sae_layer=sae_layer)
    text = dump_commented(config, known)
    if to is None:
        typer.echo(text)
        return
    with written(to):
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
