"""`steerback vectors`: directions from contrastive texts, made and looked at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.table import Table

from steerback.commands.options import out
from steerback.errors import UserError, nearest
from steerback.outfile import refuse_taken, written

if TYPE_CHECKING:
    from steerback.contrast import Method
    from steerback.vectors import VectorSet

app = typer.Typer(help="Directions from contrastive texts.", no_args_is_help=True)
METHODS = ("means", "whitened", "pca")


@app.command("make")
def vectors_make(
    to: Annotated[Path, typer.Argument(help="File to write (.safetensors).")],
    model: Annotated[str, typer.Option(help="A preset; `steerback models` lists them.")],
    texts: Annotated[
        str,
        typer.Option(help="TOML file with a table per direction, or `organism`: its topics."),
    ] = "organism",
    method: Annotated[str, typer.Option(help="means, whitened or pca.")] = "means",
    random: Annotated[int, typer.Option(min=0, help="Random directions besides.")] = 0,
    layer: Annotated[
        int | None, typer.Option(min=0, help="Layer that is read; else the steer layer.")
    ] = None,
    neighbours: Annotated[int, typer.Option(min=1, help="Nearest latents that are noted.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random ones.")] = 0,
) -> None:
    """Make directions from texts that differ in one thing, with the SAE latents nearest to each."""
    if method not in METHODS:
        raise UserError(f"unknown method {method!r}; {nearest(method, METHODS)}")
    refuse_taken(to)
    from steerback import contrast
    from steerback.lab import SOURCE, load_engine
    from steerback.presets import from_preset

    contrasts = contrast.load_contrasts(texts)
    config = from_preset(model)
    engine, facts = load_engine(config, config.model.slots)
    made = contrast.make(
        engine,
        config.model.steer_layer if layer is None else layer,
        contrasts,
        method=cast("Method", method),
        random_ones=random,
        seed=seed,
        provenance={"texts": texts, "model_hash": facts["model_hash"], "sae": config.sae.spec},
    )
    made.provenance["nearest"] = contrast.nearest(made, engine, SOURCE, neighbours)
    with written(to):
        made.save(to)
    out.print(listing(made))
    out.print(f'wrote {to}; steer with it: [directions] vectors = "{to}"', markup=False)


@app.command("show")
def vectors_show(file: Annotated[Path, typer.Argument(help="File of vectors.")]) -> None:
    """What is in a file of vectors, and how it was made."""
    from steerback.vectors import VectorSet

    found = VectorSet.load(file)
    out.print(listing(found))
    if not found.provenance:
        out.print(
            f"{found.n:,} vectors of width {found.d_model:,}; the file does not say how they were made",
            soft_wrap=True,
        )
    for key, value in sorted(found.provenance.items()):
        if key not in ("nearest", "separations"):
            out.print(f"{key}: {value}", markup=False, soft_wrap=True)


def listing(vectors: VectorSet) -> Table:
    """A row per vector: label, norm, nearest latents."""
    table = Table()
    for name in ("vector", "label", "norm", "nearest latents (cosine)"):
        table.add_column(name)
    near: list[Any] = vectors.provenance.get("nearest") or [[]] * vectors.n
    labels = vectors.labels or ("",) * vectors.n
    norms = vectors.directions(range(vectors.n)).norm(dim=1).tolist()
    for n, (label, norm, latents) in enumerate(zip(labels, norms, near, strict=True)):
        said = ", ".join(f"{k} ({cosine:.2f})" for k, cosine in latents)
        table.add_row(str(n), label, f"{norm:.3g}", said)
    return table
