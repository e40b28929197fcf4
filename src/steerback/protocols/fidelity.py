"""The steered trials again in the published code's ways, one at a time: does one move the rate?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
from pydantic import Field, field_validator

from steerback.errors import UserError
from steerback.protocols.base import Analysis, Cell, Inputs, Sheet, cells, trial
from steerback.protocols.bench import Bench
from steerback.records import Records
from steerback.stats import Comparison, Outcome, compare, holm, points, summarise
from steerback.stats.effects import welch
from steerback.stats.measures import scale
from steerback.switches import ABOUT, IN_ENGINE, SWITCHES, Switch
from steerback.tomlfile import Table
from steerback.types import Trial

STEERED, TOGETHER = "steered", "all together"
MEASURES = ("multi_attempt", "esr", "first_score")
TESTED = ("multi_attempt", "esr")
"""Rates whose p values are adjusted over the ways."""
LEVEL = 0.05
RELEVANCE: Switch = "zero-relevance"


class Settings(Table):
    prompts_per_direction: int = Field(
        default=10, ge=1, description="Questions per direction: the trials of esr, made again."
    )
    switches: list[Switch] = Field(
        default=[],
        description="Ways of the published code to try; empty: those it has for this model.",
    )
    together: bool = Field(
        default=True,
        description="Whether all of them are tried at once too, as an arm of their own.",
    )

    @field_validator("switches")
    @classmethod
    def _each_once(cls, value: list[Switch]) -> list[Switch]:
        if len(set(value)) < len(value):
            raise ValueError("it should hold different switches")
        return value


class Fidelity:
    name = "fidelity"
    asks = "Does a way in which the published code differs from the paper move the rate?"
    settings: type[Table] = Settings
    needs: tuple[str, ...] = ("esr",)

    def before(self, bench: Bench, inputs: Inputs, settings: Table) -> dict[str, Any]:
        own = cast("Settings", settings)
        tried = _tried(bench, own)
        half = (
            bench.strengths_at_half_length(inputs.directions) if "half-calibration" in tried else {}
        )
        return {
            "switches": tried,
            "together": own.together and len(tried) > 1,
            "penalty": bench.published.repetition_penalty,
            "half": half,
            "active": _active(bench, inputs) if RELEVANCE in tried else [],
        }

    def plan(self, inputs: Inputs, settings: Table) -> list[Trial]:
        n = cast("Settings", settings).prompts_per_direction
        found = inputs.found[self.name]
        return [
            made
            for arm, ways in _arms(found).items()
            for cell in cells(inputs, n)
            for made in _made(inputs, cell, arm, ways, found)
        ]

    def analyse(self, records: Records) -> Analysis:
        found = records.finding(self.name)[1]
        base = _twins(records, "esr", STEERED)
        if found is None or not base:
            return Analysis()
        arms = {arm: _twins(records, self.name, arm) for arm in _arms(found)}
        compared = [
            (f"{arm}, against {STEERED}", compare(base, outcomes, measure))
            for arm, outcomes in arms.items()
            if _meet(base, outcomes)
            for measure in MEASURES
        ]
        sheets = [_verdicts(compared)] if compared else []
        if RELEVANCE in found["switches"]:
            sheets.append(_relevance(base, set(found["active"])))
        return Analysis(records.summaries(self.name), tuple(compared), tuple(sheets))


# --- plan ------------------------------------------------------------------------------------


def _tried(bench: Bench, own: Settings) -> list[Switch]:
    """Those that are asked for, or of those that the published code has, those the model has."""
    wanted = own.switches or bench.published.switches
    twice = [s for s in own.switches if s in bench.in_force]
    if twice:
        raise UserError(f"fidelity: {twice[0]!r} is in force in the whole run; leave it out")
    tried: list[Switch] = []
    for switch in (s for s in SWITCHES if s in wanted and s not in bench.in_force):
        try:
            bench.check_variant([switch] if switch in IN_ENGINE else [])
        except UserError:
            if own.switches:
                raise
            continue
        tried.append(switch)
    return tried


def _active(bench: Bench, inputs: Inputs) -> list[str]:
    """Directions whose latents fire on some prompt: the zero rule would leave them out."""
    latents = [d for d in inputs.directions if d.source == inputs.sae]
    fires = bench.active(inputs.questions, [d.index for d in latents])
    return [d.id for d, on in zip(latents, fires.T, strict=True) if on.any()]


def _arms(found: dict[str, Any]) -> dict[str, list[Switch]]:
    """Ways by arm. Relevance has none: its trials are among the steered ones."""
    ways = [s for s in found["switches"] if s != RELEVANCE]
    arms = {s: [s] for s in ways}
    return {**arms, TOGETHER: list(found["switches"])} if found["together"] else dict(arms)


def _made(
    inputs: Inputs, cell: Cell, arm: str, ways: Sequence[Switch], found: dict[str, Any]
) -> Iterator[Trial]:
    """The cell's trial in these ways; none if the direction would not be among theirs."""
    direction = cell.direction
    strength = found["half"].get(direction.id) if "half-calibration" in ways else direction.strength
    if strength is None or (RELEVANCE in ways and direction.id in found["active"]):
        return
    add = direction.add(strength, "all" if "steered-prompt" in ways else "")
    made = trial("fidelity", arm, inputs, cell, [add])
    engine = (*inputs.variant, *(w for w in ways if w in IN_ENGINE))
    sampling = inputs.sampling
    if "code-penalty" in ways:
        sampling = replace(sampling, repetition_penalty=found["penalty"])
    yield replace(made, sampling=sampling, variant=tuple(s for s in IN_ENGINE if s in engine))


# --- analysis --------------------------------------------------------------------------------


def _twins(records: Records, protocol: str, arm: str) -> list[Outcome]:
    """Twins share direction, question and seed, at whatever strength each way finds."""
    return [
        replace(r.outcome, pair=f"{r.trial.cluster}/{r.trial.question}/{r.trial.seed}")
        for r in records.of(protocol, arm)
    ]


def _meet(a: Sequence[Outcome], b: Sequence[Outcome]) -> bool:
    return not {o.pair for o in a}.isdisjoint(o.pair for o in b)


def _verdicts(compared: Sequence[tuple[str, Comparison]]) -> Sheet:
    rows = []
    for measure in TESTED:
        by = scale(measure)
        own = [(what, c) for what, c in compared if c.measure == measure]
        for (what, c), p in zip(own, holm([c.p for _, c in own]), strict=True):
            arm = what.removesuffix(f", against {STEERED}")
            moves = "moves it" if p < LEVEL else "no sign that it does"
            rows.append(
                (arm, measure, by * c.a, by * c.b, points(c.difference, measure), float(p), moves)
            )
    meanings = [f"{s}: {ABOUT[s]}" for s in SWITCHES if any(r[0] == s for r in rows)]
    return Sheet(
        "Which ways of the published code move the rate",
        ("way", "measure", "clean", "with it", "difference, points", "p (Holm)", f"at {LEVEL:g}"),
        tuple(rows),
        (
            *meanings,
            "rates in per cent; pairs of one latent, question and seed; a way without a sign may still "
            "move it by less than its interval is wide",
        ),
    )


def _relevance(base: Sequence[Outcome], active: set[str]) -> Sheet:
    """The steered trials of latents that the zero rule keeps, beside those it leaves out."""
    groups = {
        "kept": [o for o in base if o.cluster not in active],
        "left out": [o for o in base if o.cluster in active],
    }
    rows = []
    for measure in TESTED:
        rates = {
            name: getattr(summarise(own, protocol="esr", arm=name, model=""), measure)
            for name, own in groups.items()
            if own
        }
        kept, left_out = (_by_cluster(own, measure) for own in groups.values())
        enough = min(len(kept), len(left_out)) > 1
        p = float(welch(kept, left_out).p) if enough else None
        rows.append((measure, rates.get("kept"), rates.get("left out"), p))
    return Sheet(
        f"{RELEVANCE}: latents that fire on no prompt",
        ("measure", "kept", "left out", "p (Welch, over latents)"),
        tuple(rows),
        (f"{RELEVANCE}: {ABOUT[RELEVANCE]}; the trials are those of esr, none is made again",),
    )


def _by_cluster(outcomes: Sequence[Outcome], measure: str) -> list[float]:
    """Each latent's own rate, over its scored trials."""
    found: dict[str, list[float]] = {}
    for o in outcomes:
        if not o.missing:
            found.setdefault(o.cluster, []).append(
                float(bool(o.multi if measure == "multi_attempt" else o.esr))
            )
    return [float(np.mean(values)) for values in found.values()]


PROTOCOL = Fidelity()
