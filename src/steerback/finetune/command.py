"""`steerback finetune`: rows to train on, the training, the comparison of what it did."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from steerback.commands.options import out
from steerback.errors import UserError
from steerback.outfile import refuse_taken

app = typer.Typer(help="Training self-correction in, and measuring it.", no_args_is_help=True)

Against = Annotated[
    list[str],
    typer.Option(help="Set of questions that is evaluated on besides the packaged ones."),
]


@app.command("data")
def data(
    to: Annotated[Path, typer.Argument(help="File to write (.jsonl).")],
    file: Annotated[
        Path | None, typer.Option("--from", help="Rows of a JSONL file, checked.")
    ] = None,
    organism: Annotated[
        bool, typer.Option("--organism", help="Rows in the organisms' language.")
    ] = False,
    writer: Annotated[
        str, typer.Option(help="A model writes them: hf:MODEL or PROVIDER/MODEL.")
    ] = "",
    own: Annotated[
        str, typer.Option("--self", help="A preset or configuration, from its own steered text.")
    ] = "",
    questions: Annotated[
        str, typer.Option(help="Questions to train on: a file, or organism:train.")
    ] = "",
    subjects: Annotated[
        Path | None, typer.Option(help="Off-topic subjects, one a line; else the packaged ones.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Rows to make.")] = 2000,
    corrections: Annotated[
        float, typer.Option(min=0, max=1, help="Share of self-corrections among them.")
    ] = 0.5,
    strength: Annotated[
        str, typer.Option(help="Of --self: range of strengths, in median residual norms.")
    ] = "0.5:1.5",
    calls: Annotated[int | None, typer.Option(min=1, help="Most calls to a provider.")] = None,
    base_url: Annotated[str, typer.Option(help="OpenAI-compatible server.")] = "",
    against: Against = [],  # noqa: B006
    seed: Annotated[int, typer.Option(min=0, help="Seed of what is drawn.")] = 0,
) -> None:
    """Write rows to train on: spans checked, near duplicates and evaluation questions kept out."""
    from steerback.finetune import gather, sources

    refuse_taken(to)
    wanted = sources.Wanted(
        file=file,
        organism=organism,
        writer=writer,
        own=own,
        questions=questions,
        subjects=subjects,
        count=count,
        corrections=corrections,
        strength=_range(strength),
        against=tuple(against),
        seed=seed,
        cache=to.with_suffix(".answers.sqlite"),
        settings={k: v for k, v in (("cap", calls), ("base_url", base_url)) if v},
    )
    found = sources.gathered(wanted)
    gather.save(found, to)
    out.print(found.counts(), soft_wrap=True)
    out.print(f"wrote {to}; train on it: steerback finetune train MODEL {to}", soft_wrap=True)


@app.command("train")
def train(
    base: Annotated[
        str,
        typer.Argument(help="A preset, a configuration, an id or a folder."),
    ],
    rows: Annotated[Path, typer.Argument(help="Rows (`steerback finetune data`).")],
    to: Annotated[Path, typer.Option("--out", help="Folder to write to.")],
    settings: Annotated[
        str, typer.Option(help="published, organism, organism-again, or a TOML file.")
    ] = "published",
    full: Annotated[bool, typer.Option("--full", help="Every weight instead of adapters.")] = False,
    train_on: Annotated[
        list[str],
        typer.Option(
            help="Part that the loss is taken on: prompt, off_topic, acknowledgement, answer."
        ),
    ] = [],  # noqa: B006
    share: Annotated[
        float | None, typer.Option(help="Share of self-corrections; else as the file has it.")
    ] = None,
    under_steering: Annotated[
        bool, typer.Option("--under-steering", help="Steer rows while they are trained on.")
    ] = False,
    target: Annotated[
        str | None, typer.Option(help="Of steered rows: correction, or clean (its answer alone).")
    ] = None,
    directions: Annotated[
        str | None, typer.Option(help="To steer along: sae, vectors, random or row.")
    ] = None,
    vectors: Annotated[str | None, typer.Option(help="File of vectors to steer along.")] = None,
    strength: Annotated[
        str | None, typer.Option(help="Range of strengths, LOW:HIGH, in median residual norms.")
    ] = None,
    layer: Annotated[
        list[int], typer.Option(help="Layer to steer; may be given several times.")
    ] = [],  # noqa: B006
    epochs: Annotated[int | None, typer.Option(min=1, help="Times every row is seen.")] = None,
    rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Rank of the adapters.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the training.")] = None,
    against: Against = [],  # noqa: B006
) -> None:
    """Train a model on rows, steered meanwhile if wanted. Run it again to resume."""
    from steerback.console import Terminal
    from steerback.finetune import work
    from steerback.finetune.settings import load

    given = {"share": share, "epochs": epochs, "rate": rate, "rank": rank, "seed": seed}
    changes: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
    if full:
        changes["method"] = "full"
    if train_on:
        changes["trained"] = train_on
    steering = _steering(target, directions, vectors, strength, layer)
    if steering and not under_steering:
        raise UserError(f"--{next(iter(steering))} is of a training --under-steering")
    if under_steering:
        changes["steering"] = steering
    job = work.Job(
        base=work.base_of(base),
        rows=rows,
        folder=to,
        settings=load(settings, changes),
        command=shlex.join(["steerback", *sys.argv[1:]]),
        against=tuple(against),
    )
    with Terminal(out) as ui:
        record = work.train(job, ui.stage, _shown(ui))
    out.print(
        f"loss {record['loss']['first']:.3f} -> {record['loss']['last']:.3f} in "
        f"{record['minutes']:g} minutes; {to / work.MERGED} loads like any model",
        soft_wrap=True,
    )


@app.command("compare")
def compare(
    base: Annotated[str, typer.Argument(help="The base: a preset or a configuration.")],
    tuned: Annotated[list[Path], typer.Argument(help="Folders of finished trainings.")],
    folder: Annotated[Path, typer.Option(help="Where the runs go.")] = Path("runs/finetune"),
    latents: Annotated[
        int, typer.Option(min=1, help="Directions that no model was trained along.")
    ] = 24,
    seen: Annotated[int, typer.Option(min=0, help="Directions that some were, besides.")] = 8,
    prompts: Annotated[int, typer.Option(min=1, help="Questions per direction and arm.")] = 8,
    dose: Annotated[
        list[float], typer.Option(help="Strength that all get, over the base's threshold.")
    ] = [0.5, 0.75, 1.0, 1.5],  # noqa: B006
    layer: Annotated[
        list[int], typer.Option(help="Another layer to steer; may be given several times.")
    ] = [],  # noqa: B006
    random: Annotated[int, typer.Option(min=0, help="Random directions.")] = 12,
    held_out: Annotated[
        str, typer.Option(help="Held-out questions; auto: the set that belongs to the base's.")
    ] = "auto",
) -> None:
    """Measure a base and its tuned models alike, and what training changed. Run it again to resume."""
    from steerback.console import Terminal, headline
    from steerback.finetune import compare as comparing
    from steerback.finetune import page
    from steerback.finetune.work import base_of

    if any(f <= 0 for f in dose) or len(set(dose)) < len(dose):
        raise UserError("--dose takes different numbers above 0")
    wanted = comparing.Wanted(
        base=base_of(base),
        tuned=tuple(tuned),
        folder=folder,
        latents=latents,
        seen=seen,
        per_direction=prompts,
        factors=tuple(sorted(dose)),
        layers=tuple(layer),
        random=random,
        held_out=held_out,
    )
    wanted.models()
    with Terminal(out) as ui:
        comparing.run(wanted, ui)
        evidence, _, written = page.write(wanted)
    out.print(headline(s for s in written.summaries if s.protocol in ("baseline", "esr")))
    for contrast, arm, said in page.headline(evidence):
        out.print(f"ESR, {contrast}, {arm}: {said} points", soft_wrap=True)
    out.print(f"report: {written.path}", soft_wrap=True)


def _steering(
    target: str | None,
    directions: str | None,
    vectors: str | None,
    strength: str | None,
    layers: list[int],
) -> dict[str, Any]:
    given: dict[str, Any] = {"target": target, "vectors": vectors, "layers": layers or None}
    given["directions"] = directions or ("vectors" if vectors else None)
    if strength is not None:
        given["strength"] = list(_range(strength))
    return {k: v for k, v in given.items() if v is not None}


def _range(said: str) -> tuple[float, float]:
    try:
        low, high = map(float, said.split(":"))
    except ValueError:
        raise UserError(f"--strength is {said!r}; write two numbers, such as 0.2:0.8") from None
    return low, high


def _shown(ui: Any) -> Any:
    """Tells a terminal of each step, and anything else of each tenth."""
    from steerback.engine.base import Progress as Shown
    from steerback.finetune.training import Progress

    first: list[int] = []

    def report(p: Progress) -> None:
        first.append(p.step - 1) if not first else None
        done, total = p.step - first[0], p.total - first[0]
        ui.progress(f"loss {p.loss:.3f}", Shown(done, total, p.tokens, p.seconds))
        tenth = max(1, p.total // 10)
        if not ui.console.is_terminal and (p.step % tenth == 0 or p.step == p.total):
            rate = p.tokens / p.seconds if p.seconds else 0.0
            out.print(f"  step {p.step:,} of {p.total:,}: loss {p.loss:.3f}, {rate:,.0f} tokens/s")

    return report
