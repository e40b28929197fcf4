"""Commands that need no run: one steered question, the power of a design, this machine."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from steerback.commands.options import JsonFlag, out
from steerback.errors import UserError

app = typer.Typer()


@app.command()
def steer(
    model: Annotated[str, typer.Argument(help="A preset, a Hugging Face id or a folder.")],
    question: Annotated[str, typer.Argument(help="What to ask.")],
    latent: Annotated[list[int], typer.Option(help="Latent to add; may be given several times.")],
    strength: Annotated[float, typer.Option(help="Steering strength.")],
    unit: Annotated[str, typer.Option(help="raw or resid (median residual norms).")] = "raw",
    sae: Annotated[str, typer.Option(help="SAE, where the model is no preset.")] = "",
    layer: Annotated[
        int | None, typer.Option(min=0, help="Layer to steer; else the preset's.")
    ] = None,
    readout_layer: Annotated[
        int | None, typer.Option(min=0, help="Layer that is read; else the SAE's.")
    ] = None,
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
        layer=layer,
        readout_layer=readout_layer,
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
    before: Annotated[float, typer.Argument(help="Rate without the change, above 0 and below 1.")],
    after: Annotated[float, typer.Argument(help="Rate with it, above 0 and below 1.")],
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

    for name, rate in (("BEFORE", before), ("AFTER", after)):
        if not 0 < rate < 1:
            raise UserError(f"{name} is {rate:g}; give a rate above 0 and below 1, such as 0.3")
    if before == after:
        raise UserError(f"BEFORE and AFTER are both {before:g}: there is no change to see")
    found = simulate(before, after, icc=icc, pair_correlation=pair_correlation, target=target)
    out.print_json(data=asdict(found)) if as_json else out.print(power_table(found))


@app.command()
def doctor() -> None:
    """What is installed and found on this machine, and what to do about what is not."""
    from steerback.doctor import checks

    for check in checks():
        mark = Text("ok ", "green") if check.ok else Text("-- ", "yellow")
        out.print(mark.append(f" {check.what}: {check.found}"))
        if check.remedy:
            out.print(f"     {check.remedy}", style="dim", soft_wrap=True)
