"""What a run would cost, before it is begun: trials and tokens of its plan, hours at a measured rate.

Nothing is loaded. Every direction is taken to reach its target, every response to be as long as it may
be, so the numbers are upper bounds; a protocol that must look at the model before it plans is named,
not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from steerback import protocols
from steerback.config import RunConfig
from steerback.errors import UserError
from steerback.judge.prompt import Prompt, estimate_tokens
from steerback.prompts import load_prompts
from steerback.protocols.base import Direction, Inputs, Staged
from steerback.store import Store
from steerback.types import CALIBRATION

WITHOUT_MODEL = ("exact", "embed", "dry")
"""Judges that ask nobody."""


@dataclass(frozen=True)
class Part:
    """One protocol, or the search for strengths."""

    name: str
    trials: int | None
    """None: it looks at the model before it plans."""
    tokens: int | None
    """New tokens at most."""


@dataclass(frozen=True)
class Rate:
    """How fast trials were made, by one engine or by several together."""

    tokens_per_second: float
    tokens_per_trial: float | None
    """Mean of a response; None where only the rate is known."""
    engine: str

    @classmethod
    def of(cls, folder: Path) -> Rate:
        """As a run measured it, over all that it generated. UserError if it generated nothing."""
        with Store.open(folder, mode="ro") as store:
            lengths = [len(made.token_ids) for _, made in store.trials()]
            spent = store.engine_seconds()
        seconds = sum(spent.values())
        if not lengths or not seconds:
            raise UserError(f"{folder}: no trial was generated here, so there is no rate")
        total = sum(lengths)
        return cls(total / seconds, total / len(lengths), ", ".join(sorted(spent)))


def parts(config: RunConfig) -> list[Part]:
    """What the run plans, in its order."""
    questions = load_prompts(config.prompts).questions
    inputs = Inputs(
        model=config.model.name,
        seed=config.seed,
        questions=questions,
        directions=tuple(_directions(config)),
        sampling=config.drawing(),
        prompts=config.prompts,
        variant=config.variant,
    )
    wanted = protocols.with_needs(config.protocols)
    return [_search(config), *(_part(config, inputs, name) for name in wanted)]


def _directions(config: RunConfig) -> list[Direction]:
    count = len(config.directions.indices) or config.directions.count
    layer, unit = config.model.steer_layer, config.calibration.unit
    return [Direction("sae", k, layer, unit, f"latent {k}", 1.0, 0.1) for k in range(count)]


def _search(config: RunConfig) -> Part:
    c = config.calibration
    trials = len(_directions(config)) * (c.rounds * c.prompts_per_round + c.fresh)
    return Part(CALIBRATION, trials, trials * config.drawing(calibrating=True).max_new_tokens)


def _part(config: RunConfig, inputs: Inputs, name: str) -> Part:
    protocol = protocols.get(name)
    if isinstance(protocol, Staged):
        return Part(name, None, None)
    settings = protocol.settings.model_validate(config.settings.get(name, {}))
    trials = protocol.plan(inputs, settings)
    return Part(name, len(trials), sum(t.sampling.max_new_tokens for t in trials))


@dataclass(frozen=True)
class Judged:
    """What the run asks of a judge that is a language model, at most: each answer, and where a protocol
    wants to know of implicit recovery the first and the last third of it. Tries after failures and
    answers in the cache are not counted."""

    judge: str
    calls: int
    tokens: int
    """To read, at 4 bytes each in prompts."""

    @classmethod
    def of(cls, config: RunConfig, found: Sequence[Part]) -> Judged | None:
        """None: the judge asks no language model. UserError: its prompt cannot be read."""
        if config.judge.partition(":")[0] in WITHOUT_MODEL:
            return None
        prompt, questions = (
            Prompt.load(config.judging.prompt),
            load_prompts(config.prompts).questions,
        )
        asked = estimate_tokens(prompt.template) + max(map(estimate_tokens, questions))
        calls = tokens = 0
        for part in found:
            thirds = 0 if part.name == CALIBRATION else 2
            calls += (1 + thirds) * (part.trials or 0)
            tokens += (part.tokens or 0) * (3 + thirds) // 3
        return cls(config.judge, calls, tokens + calls * asked)

    def __str__(self) -> str:
        return (
            f"judge {self.judge}: {self.calls:,} calls and {self.tokens:,} tokens to read, at most"
        )


def hours(found: Sequence[Part], rate: Rate, copies: int) -> tuple[float, float]:
    """Expected at the measured length of a response, and at most: hours of `copies` engines that
    generate at `rate` each, all the time."""
    trials = sum(p.trials or 0 for p in found)
    most = sum(p.tokens or 0 for p in found)
    likely = most if rate.tokens_per_trial is None else min(most, trials * rate.tokens_per_trial)
    per_hour = 3600 * rate.tokens_per_second * copies
    return likely / per_hour, most / per_hour


def as_json(
    found: Sequence[Part], judged: Judged | None, rate: Rate | None, copies: int, gpus: float
) -> dict[str, Any]:
    out: dict[str, Any] = {"parts": [asdict(p) for p in found]}
    out["judge"] = None if judged is None else asdict(judged)
    if rate is not None:
        likely, most = hours(found, rate, copies)
        out |= {"rate": asdict(rate), "engines": copies, "hours": likely, "hours_at_most": most}
        out |= {"gpu_hours": likely * copies * gpus, "gpu_hours_at_most": most * copies * gpus}
    return out


def show(
    found: Sequence[Part],
    judged: Judged | None,
    rate: Rate | None,
    copies: int,
    gpus: float,
    out: Console,
) -> None:
    table = Table("protocol", "trials", "new tokens, at most")
    for column in table.columns[1:]:
        column.justify = "right"
    for part in found:
        if part.trials is None or part.tokens is None:
            table.add_row(part.name, "?", "?")
        else:
            table.add_row(part.name, f"{part.trials:,}", f"{part.tokens:,}")
    trials, tokens = (sum(getattr(p, f) or 0 for p in found) for f in ("trials", "tokens"))
    unknown = any(p.trials is None for p in found)
    table.add_row("in all, without ?" if unknown else "in all", f"{trials:,}", f"{tokens:,}")
    out.print(table)
    if unknown:
        out.print(
            "?: looks at the model before it plans, and is not counted, here and below: the run makes "
            "more than this",
            soft_wrap=True,
        )
    if judged is not None:
        out.print(str(judged))
    if rate is None:
        out.print("hours: give --measured RUN or --rate TOKENS_PER_SECOND")
        return
    likely, most = hours(found, rate, copies)
    out.print(
        f"{rate.tokens_per_second:,.0f} tokens/s ({rate.engine}) x {copies}: {likely:.2g} hours, "
        f"{most:.2g} at most; {likely * copies * gpus:.2g} to {most * copies * gpus:.2g} GPU-hours"
    )
