"""One question to a steered model, answered before your eyes, beside the unsteered answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from steerback import chat
from steerback.engine.base import Watch
from steerback.engine.hf import HFEngine
from steerback.errors import UserError
from steerback.judge.segment import restarts
from steerback.lab import SOURCE, model_path, own_labels, sae_path
from steerback.memory import Quantize
from steerback.presets import preset, presets
from steerback.prompts import load_prompts
from steerback.sae import load_sae
from steerback.types import Generation, Intervention, Message, Sampling, Trial, Unit

SHADES = ("color(52)", "color(88)", "color(124)", "color(160)", "color(196)")
"""From barely active to the most active token."""
NORM_QUESTIONS = 16
PEAKS = 6
"""Tokens named per latent where there is no colour."""


@dataclass(frozen=True)
class Request:
    """What the user asked for; see `steerback steer --help`."""

    model: str
    question: str
    latents: tuple[int, ...]
    strength: float
    unit: str
    sae: str
    layer: int | None
    readout_layer: int | None
    positions: str
    watch: tuple[int, ...]
    seed: int
    sampling: Sampling
    compare: bool
    dtype: str
    device: str
    quantize: Quantize = "none"
    device_map: str | None = None


@dataclass(frozen=True)
class Setup:
    """Where the model and its SAE are, and which layers are meant."""

    path: str
    sae: str
    layer: int
    readout_layer: int
    prompts: str


def resolve(request: Request) -> Setup:
    """A preset knows its SAE and layers; for any other model they must be given."""
    known: dict[str, Any] = preset(request.model) if request.model in presets() else {}
    model, sae = known.get("model", {}), known.get("sae", {})
    spec = request.sae or sae.get("spec", "")
    layer = model.get("steer_layer") if request.layer is None else request.layer
    missing = [name for name, value in (("--sae", spec), ("--layer", layer)) if value in ("", None)]
    if missing:
        raise UserError(
            f"{request.model!r} is no preset, so {' and '.join(missing)} must be given "
            "(`steerback models` lists the presets)"
        )
    readout = request.readout_layer
    if readout is None:
        readout = sae.get("layer", layer) if not request.sae else layer
    path = model.get("path", request.model)
    return Setup(path, spec, int(layer), int(readout), known.get("prompts", "eval"))


def show(request: Request, out: Console) -> None:
    """Stream the answers, then show what the watched latents did at each token."""
    if not request.question.strip():
        raise UserError("the question is empty; write what the model is to be asked")
    setup = resolve(request)
    source = load_sae(sae_path(setup.sae), name=SOURCE)
    engine = HFEngine.load(
        model_path(setup.path),
        name=request.model,
        dtype=request.dtype,
        device=None if request.device == "auto" else request.device,
        quantize=request.quantize,
        device_map=request.device_map,
        sources={SOURCE: source},
        slots=2,
    )
    if request.unit == "resid":
        questions = load_prompts(setup.prompts).questions[:NORM_QUESTIONS]
        engine.measure_norm(setup.layer, questions)
    trials = _trials(request, setup)
    latents = tuple(dict.fromkeys((*request.latents, *request.watch)))
    watch = Watch(SOURCE, setup.readout_layer, latents)
    made = _stream(engine, trials, watch, out, added(request, setup))
    show_trace = _strip if out.is_terminal else _peaks
    for trial in trials:
        out.print(show_trace(engine, trial, made[trial.key]))


def added(request: Request, setup: Setup) -> str:
    """What is added to the stream, where, and what it is said to stand for."""
    labels = own_labels(setup.sae)
    what = " and ".join(
        f"latent {k}" + (f" ({labels[k].text})" if k in labels else "") for k in request.latents
    )
    unit = "median residual norms" if request.unit == "resid" else "times the decoder row"
    tokens = {"generated": "every generated token", "all": "every token"}
    where = tokens.get(request.positions, f"the tokens {request.positions}")
    return f"adds {what}, {request.strength:g} {unit}, to {where} at layer {setup.layer}"


def _trials(request: Request, setup: Setup) -> list[Trial]:
    """The unsteered trial first, if wanted, then the steered one: same question, same seed."""
    added = tuple(
        Intervention(
            "add",
            SOURCE,
            latent,
            request.strength,
            setup.layer,
            cast("Unit", request.unit),
            request.positions,
        )
        for latent in request.latents
    )
    arms = [("unsteered", ())] if request.compare else []
    return [
        Trial(
            protocol="steer",
            arm=arm,
            model=request.model,
            question=request.question,
            messages=(Message("user", request.question),),
            sampling=request.sampling,
            seed=request.seed,
            interventions=interventions,
        )
        for arm, interventions in [*arms, ("steered", added)]
    ]


def _stream(
    engine: HFEngine, trials: Sequence[Trial], watch: Watch, out: Console, title: str
) -> dict[str, Generation]:
    said: dict[str, list[int]] = {t.key: [] for t in trials}

    def panels() -> RenderableType:
        width = max(24, out.width // len(trials) - 1)
        texts = [(t.arm, marked(chat.decode(engine.tokenizer, said[t.key]))) for t in trials]
        return Columns([Panel(text, title=arm, width=width) for arm, text in texts])

    live = Live(console=out, auto_refresh=False)

    def hear(trial: Trial, token: int) -> None:
        said[trial.key].append(token)
        if out.is_terminal:
            live.update(panels(), refresh=True)

    # checked here, before anything is drawn on the screen
    stream = engine.generate(trials, watch=watch, listener=hear)
    out.print(title, soft_wrap=True)
    with live:
        made = {g.trial_key: g for g in stream}
        live.update(panels(), refresh=True)
    return made


def marked(text: str) -> Text:
    """A response with its restart phrases underlined."""
    out = Text(text)
    for restart in restarts(text):
        out.stylize("bold underline", restart.start, restart.end)
    return out


def _strip(engine: HFEngine, trial: Trial, made: Generation) -> Group:
    """One line of coloured text per watched latent: the brighter, the more active at that token."""
    assert made.trace is not None
    text, spans = chat.spans(engine.tokenizer, made.token_ids)
    lines: list[RenderableType] = [Text(f"\n{trial.arm}, {made.finish_reason}", style="bold")]
    for column, latent in enumerate(made.trace.latents):
        values = made.trace.values[:, column]
        top = float(values.max())
        line = Text(text)
        for (start, end), value in zip(spans, values, strict=True):
            if value > 0:
                shade = min(int(len(SHADES) * float(value) / top), len(SHADES) - 1)
                line.stylize(f"on {SHADES[shade]}", start, end)
        lines += [Text(f"latent {latent}, at most {top:.3g}", style="dim"), line]
    return Group(*lines)


def _peaks(engine: HFEngine, trial: Trial, made: Generation) -> Group:
    """For a pipe: a line per watched latent with the tokens at which it is most active."""
    assert made.trace is not None
    text, spans = chat.spans(engine.tokenizer, made.token_ids)
    lines: list[RenderableType] = [Text(f"\n{trial.arm}, {made.finish_reason}")]
    for column, latent in enumerate(made.trace.latents):
        values = made.trace.values[:, column]
        order = [n for n in (-values).argsort(kind="stable")[:PEAKS].tolist() if values[n] > 0]
        said = ", ".join(
            f"{text[slice(*spans[n])].strip()!r} {values[n]:.3g} (token {n})" for n in order
        )
        lines.append(
            Text(f"latent {latent}, at most {float(values.max()):.3g}: {said or 'silent'}")
        )
    return Group(*lines)
