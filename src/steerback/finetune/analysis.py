"""What training changed: rates side by side, paired differences, doses, costs, mixes, loss curves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from steerback.finetune import design, perplexity
from steerback.finetune.compare import BASE
from steerback.finetune.evidence import HELD_OUT, PLAIN, SEEN, UNSEEN, Evidence
from steerback.protocols.base import Analysis, Entry, Sheet
from steerback.protocols.charts import Chart, Lines, Point, Series
from steerback.stats import Comparison

ASKS = "What did training change, and what did it not?"
MEASURES = ("multi_attempt", "esr", "cond_improvement", "first_score", "on_topic")
_POINTS = 60
"""Of a loss curve."""


def analyse(evidence: Evidence, folders: Sequence[Path] = ()) -> Analysis:
    """folders: of the trainings, for their loss curves."""
    charts = [*_doses(evidence), *_mix(evidence), *_losses(folders)]
    return Analysis(
        comparisons=tuple(_comparisons(evidence)),
        sheets=(
            _rates(evidence),
            _generalisation(evidence),
            _equal(evidence),
            _costs(evidence),
            _wanted(evidence),
        ),
        charts=tuple(charts),
    )


def _comparisons(evidence: Evidence) -> Iterator[tuple[str, Comparison]]:
    for a, b in evidence.contrasts():
        for arm in (UNSEEN, HELD_OUT, PLAIN):
            for measure in MEASURES:
                found = evidence.difference(a, b, arm, measure)
                if found is not None:
                    yield f"{b}, against {a}: {arm}", found


# --- tables ----------------------------------------------------------------------------------


def _rates(evidence: Evidence) -> Sheet:
    """Every arm of every model, recalibrated where it is steered at its own threshold."""
    rows: list[tuple[Entry, ...]] = []
    for arm in evidence.arms():
        for name in evidence.names:
            if evidence.by[name].get(arm):
                s = evidence.summary(name, arm)
                rows.append(
                    (
                        arm,
                        name,
                        s.n,
                        s.first_score,
                        s.multi_attempt,
                        s.cond_improvement,
                        s.chance_improvement,
                        s.improvement_above_chance,
                        s.esr,
                        s.implicit_recovery,
                        s.on_topic,
                    )
                )
    return Sheet(
        "Every arm, model by model",
        (
            "arm",
            "model",
            "trials",
            "first-attempt score",
            "multi-attempt",
            "improved, of restarted",
            "improved by chance",
            "above chance",
            "ESR",
            "implicit recovery",
            "ends on topic",
        ),
        tuple(rows),
        (
            "rates as parts of 1, scores in points, intervals clustered by direction",
            "arms of held-out and of random directions, and other layers, are at the strength that "
            "brings each model's own first attempts to the target; doses are the base's",
        ),
    )


def _generalisation(evidence: Evidence) -> Sheet:
    """ESR against the base where training went and where it never did."""
    fixed = {PLAIN, design.WANTED, design.NORMS, *(design.dose(f) for f in evidence.design.factors)}
    rows: list[tuple[Entry, ...]] = []
    for arm in evidence.arms():
        if arm in fixed or arm.startswith("prefill"):
            continue
        for model in evidence.tuned:
            found = evidence.difference(BASE, model.name, arm, "esr")
            if found is not None:
                rows.append(
                    (arm, model.name, found.pairs, found.a, found.b, found.difference, found.p)
                )
    return Sheet(
        "Does it generalise? ESR against the base, recalibrated",
        ("directions", "model", "pairs", "ESR of the base", "ESR", "difference", "p (swap test)"),
        tuple(rows),
        (
            f"{SEEN}: some model was trained along them; random directions and other layers: no "
            "model was, unless its card says so",
        ),
    )


def _equal(evidence: Evidence) -> Sheet:
    """Equal strength is one comparison, equal effect on the first attempt another."""
    rows: list[tuple[Entry, ...]] = []
    for model in evidence.tuned:
        grown = evidence.norms[model.name] / evidence.norms[BASE]
        for arm in (UNSEEN, design.NORMS, *(design.dose(f) for f in evidence.design.factors)):
            first, esr, on_topic = (
                evidence.difference(BASE, model.name, arm, m)
                for m in ("first_score", "esr", "on_topic")
            )
            if first is not None and esr is not None and on_topic is not None:
                what = "equal first-attempt score" if arm == UNSEEN else f"equal strength: {arm}"
                rows.append(
                    (
                        model.name,
                        grown,
                        what,
                        esr.pairs,
                        first.difference,
                        esr.difference,
                        on_topic.difference,
                    )
                )
    return Sheet(
        "At equal strength, and at equal first-attempt score",
        (
            "model",
            "its residual norm, over the base's",
            "compared",
            "pairs",
            "first-attempt score",
            "ESR",
            "ends on topic",
        ),
        tuple(rows),
        (
            "differences are the tuned model minus the base, paired; held-out directions",
            "a stream that has grown feels the same vector less: in residual norms, each model gets "
            "the base's threshold as a share of its own stream",
        ),
    )


def _costs(evidence: Evidence) -> Sheet:
    rows: list[tuple[Entry, ...]] = []
    for name in evidence.names:
        s = evidence.summary(name, PLAIN)
        told = evidence.told[name]
        more = None if name == BASE else perplexity.increase(evidence.told[BASE], told)
        rows.append(
            (
                name,
                s.n,
                s.multi_attempt,
                s.first_score,
                s.degraded,
                perplexity.perplexity(told),
                more,
            )
        )
    return Sheet(
        "What it costs ordinary answers",
        (
            "model",
            "unsteered answers",
            "restart",
            "score",
            "degraded",
            "perplexity of the base's answers",
            "over the base",
        ),
        tuple(rows),
        (
            "perplexity: exp of nats per token of the base's own unsteered answers, teacher-forced, "
            "without steering; intervals resample questions",
        ),
    )


def _wanted(evidence: Evidence) -> Sheet:
    """Resistance does not ask whether a push was wanted."""
    rows: list[tuple[Entry, ...]] = []
    steered = design.dose(1.0) if 1.0 in evidence.design.factors else ""
    for name in evidence.names:
        if steered:
            s = evidence.summary(name, steered)
            gap = _gap(evidence, name, steered, "steered")
            rows.append((name, "away from the question", s.n, s.steered, gap, s.multi_attempt))
        s = evidence.summary(name, design.WANTED)
        if s.n:
            gap = _gap(evidence, name, design.WANTED, "on_topic")
            rows.append((name, "the question's own way", s.n, s.on_topic, gap, s.multi_attempt))
    return Sheet(
        "Does a wanted direction still work?",
        ("model", "pushed", "trials", "goes along", "against the base", "restarts"),
        tuple(rows),
        (
            "at the base's own threshold. Away from the question: the answer ends where the push "
            "leads. The question's own way: a direction that has to do with the question, and the "
            "answer stays on it; a restart there is a false alarm",
        ),
    )


def _gap(evidence: Evidence, name: str, arm: str, measure: str) -> Entry:
    if name == BASE:
        return None
    found = evidence.difference(BASE, name, arm, measure)
    return None if found is None else found.difference


# --- figures ---------------------------------------------------------------------------------


def _doses(evidence: Evidence) -> Iterator[Chart]:
    factors = evidence.design.factors
    if len(factors) < 2:
        return
    panels = []
    for title, measure in (
        ("First-attempt score", "first_score"),
        ("Multi-attempt rate", "multi_attempt"),
        ("ESR", "esr"),
    ):
        series = []
        for name in evidence.names:
            found = [evidence.summary(name, design.dose(f)) for f in factors]
            values: tuple[Point, ...] = tuple(getattr(s, measure) for s in found)
            series.append(Series(name, values))
        panels.append((title, tuple(series)))
    yield Lines(
        "Dose and response at strengths that all models share",
        "Strengths are multiples of the base's own thresholds, the same vectors for every model. "
        "Bands: 95%, clustered by direction.",
        "strength, over the base's threshold",
        factors,
        tuple(panels),
        mark=1.0,
    )


def _mix(evidence: Evidence) -> Iterator[Chart]:
    """Rates by share of self-corrections, for models that differ in it and were not steered."""
    found = {
        float(m.record["data"]["share"]): m.name
        for m in evidence.tuned
        if m.record and m.record["steering"] is None
    }
    if len(found) < 2:
        return
    shares = (0.0, *sorted(found))
    names = [BASE, *(found[s] for s in sorted(found))]
    panels = []
    for title, measure in (
        ("Multi-attempt rate", "multi_attempt"),
        ("Improved, of restarted", "cond_improvement"),
        ("ESR", "esr"),
    ):
        summaries = [evidence.summary(n, UNSEEN) for n in names]
        values: tuple[Point, ...] = tuple(getattr(s, measure) for s in summaries)
        panels.append((title, (Series("recalibrated", values),)))
    yield Lines(
        "Share of self-corrections among the rows",
        "Models trained without steering; 0 is the base. Bands: 95%, clustered by direction.",
        "share of self-corrections",
        shares,
        tuple(panels),
    )


def _losses(folders: Sequence[Path]) -> Iterator[Chart]:
    for folder in folders:
        lines = (folder / "loss.jsonl").read_text("utf-8").splitlines()
        entries = [json.loads(line) for line in lines]
        train = [e for e in entries if e["kind"] == "train"]
        size = max(1, -(-len(train) // _POINTS))
        groups = [train[at : at + size] for at in range(0, len(train), size)]
        x = tuple(float(g[-1]["step"]) for g in groups)
        checked = {e["step"]: e["loss"] for e in entries if e["kind"] == "validation"}
        series = [Series("rows", tuple(sum(e["loss"] for e in g) / len(g) for g in groups))]
        if checked and len(x) > 1:
            nearest = [min(checked, key=lambda s: abs(s - at)) for at in x]
            series.append(Series("validation", tuple(checked[s] for s in nearest)))
        if len(x) > 1:
            yield Lines(
                f"Loss of {folder.name}",
                "Cross-entropy per unit of loss weight, averaged over neighbouring steps; of the "
                "validation rows at the nearest checkpoint.",
                "step",
                x,
                (("Loss", tuple(series)),),
            )
