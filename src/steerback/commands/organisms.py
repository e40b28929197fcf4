"""`steerback organism`: make them, check them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from steerback.commands.options import JsonFlag, MadeFolder, err, out

app = typer.Typer(help="Model organisms: make them, check them.", no_args_is_help=True)


@app.command("list")
def organism_list() -> None:
    """The packaged model organisms."""
    from steerback import organism

    for name in organism.names():
        out.print(f"{name:20} {organism.path(name)}", soft_wrap=True)


@app.command("train")
def organism_train(
    name: Annotated[str, typer.Argument(help="Name of the recipe.")],
    to: Annotated[Path, typer.Option("--out", help="Folder to write it to.")] = Path("organisms"),
    seed: Annotated[int | None, typer.Option(help="Instead of the recipe's own.")] = None,
) -> None:
    """Make an organism from its recipe, the same every time. Run it again to resume."""
    from steerback import organism

    out.print(f"made {organism.train(name, to, seed=seed, report=out.print)}")


@app.command("card")
def organism_card(
    name: Annotated[str, typer.Argument(help="Organism.")],
    made: MadeFolder = None,
) -> None:
    """Write an organism's model card: how it was made, and twenty answers that nobody chose."""
    from steerback.organism.card import write_card

    out.print(f"wrote {write_card(name, made)}", soft_wrap=True)


@app.command("check")
def organism_check(
    names: Annotated[
        list[str] | None, typer.Argument(help="Organisms; else all of which something is expected.")
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where the runs go.")] = Path("runs/check"),
    latents: Annotated[int, typer.Option(min=1, help="Latents to steer with.")] = 24,
    prompts: Annotated[
        int,
        typer.Option(
            min=1, help="Questions per latent; three times as many where restarts are few."
        ),
    ] = 20,
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


@app.command("truths")
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
