"""Before a protocol can be planned: choose latents, find each one's strength. Both are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steerback import latents, shortfall
from steerback.calibrate import Calibrator, Outcome, PromptPlan, calibration_key
from steerback.config import halved
from steerback.engine.base import Pair
from steerback.judge.registry import make_rater
from steerback.lab import SOURCE, VECTORS, Lab
from steerback.latents import Chosen
from steerback.protocols.base import Direction, Inputs
from steerback.types import (
    CALIBRATION,
    Intervention,
    Message,
    Sampling,
    Trial,
    derive_seed,
    stable_hash,
)
from steerback.vectors import VectorSet

Bools = NDArray[np.bool_]
RELATED = 0.4
"""Share of the distance between two kinds of text at which a prompt has to do with their difference."""
NORM_QUESTIONS = 32
"""Questions whose unsteered answers tell the residual norm and which latents are alive."""


def prepare(lab: Lab) -> Inputs:
    """The inputs of every protocol of the run: directions that reached their target, with strengths."""
    chosen = choose(lab)
    measure_norm(lab)
    directions = calibrate(lab, [_direction(lab, c) for c in chosen])
    return Inputs(
        model=lab.config.model.name,
        seed=lab.config.seed,
        questions=lab.questions,
        directions=tuple(directions),
        sampling=lab.config.drawing(),
        prompts=lab.config.prompts,
        variant=lab.config.variant,
        sae=SOURCE,
    )


def measure_norm(lab: Lab) -> None:
    """The median residual norm at the steer layer, measured once per run."""
    layer = lab.config.model.steer_layer
    stored = lab.store.get_artifact("residual_norm")
    if stored is None:
        lab.ui.stage("measuring the residual norm")
        norm = lab.engine.measure_norm(layer, lab.questions[:NORM_QUESTIONS])
        stored = {"layer": layer, "median": norm}
        lab.store.put_artifact("residual_norm", stored)
    lab.engine.norms[layer] = stored["median"]


# --- latents ----------------------------------------------------------------------------------


def choose(lab: Lab) -> list[Chosen]:
    """The latents of the run, chosen once: those the configuration names, or random ones that pass."""
    stored = lab.store.get_artifact("latents")
    if stored is None:
        lab.ui.stage("choosing latents")
        chosen, funnel = _chosen(lab)
        if not chosen:
            raise shortfall.none_left(funnel)
        stored = latents.as_json(chosen)
        lab.store.put_artifact("latents", stored)
        lab.store.put_artifact("funnel", funnel.as_json())
    return latents.from_json(stored)


def _chosen(lab: Lab) -> tuple[list[Chosen], latents.Funnel]:
    if lab.vectors is not None:
        return _vectors(lab, lab.vectors)
    return _given(lab) if lab.config.directions.indices else _drawn(lab)


def _vectors(lab: Lab, vectors: VectorSet) -> tuple[list[Chosen], latents.Funnel]:
    """Vectors of a file in random order, or those the configuration names; each is kept from the
    questions that it has to do with."""
    funnel = latents.Funnel()
    funnel.note("vectors of the file", vectors.n)
    wanted = lab.config.directions
    rng = np.random.default_rng(derive_seed(lab.config.seed, "vectors"))
    order = wanted.indices or rng.permutation(vectors.n).tolist()[: wanted.count]
    related = relevant_to_vectors(lab, lab.questions, order)
    named = vectors.labels or ("",) * vectors.n
    chosen = []
    for k, column in zip(order, related.T, strict=True):
        skip = tuple(q for q, yes in zip(lab.questions, column, strict=True) if yes)
        if latents.usable(len(skip), len(lab.questions), wanted.scope):
            chosen.append(Chosen(k, named[k], skip, VECTORS))
    funnel.note("wanted", len(order))
    funnel.note(
        "irrelevant to " + ("every" if wanted.scope == "run" else "some") + " prompt", len(chosen)
    )
    return chosen, funnel


def relevant_to_vectors(lab: Lab, questions: Sequence[str], indices: Sequence[int]) -> Bools:
    """[questions, indices]: whether a prompt lies further along the vector than most do, by RELATED of
    the distance between the two kinds of text that it was made of. Never, where the file does not say
    how far those are apart.

    A prompt is the mean of its tokens. Most is the median over the questions, so most of them should
    have nothing to do with any one vector.
    """
    out = np.zeros((len(questions), len(indices)), np.bool_)
    if lab.vectors is None or lab.config.relevance == "none":
        return out
    apart = lab.vectors.provenance.get("separations") or [None] * lab.vectors.n
    pairs = [prompt_pair(lab, q) for q in questions]
    streams = lab.engine.streams(pairs, lab.config.model.steer_layer)
    units = torch.nn.functional.normalize(lab.vectors.directions(indices), dim=1).numpy()
    along = np.stack([h.numpy().mean(axis=0) for h in streams]) @ units.T
    further = along - np.median(along, axis=0)
    for n, k in enumerate(indices):
        if apart[k] is not None:
            out[:, n] = further[:, n] > RELATED * apart[k]
    return out


def _given(lab: Lab) -> tuple[list[Chosen], latents.Funnel]:
    funnel = latents.Funnel()
    funnel.note("named in the configuration", len(lab.config.directions.indices))
    names = lab.labels
    return [
        Chosen(k, names[k].text if k in names else "") for k in lab.config.directions.indices
    ], funnel


def _drawn(lab: Lab) -> tuple[list[Chosen], latents.Funnel]:
    wanted = lab.config.directions
    shortfall.say_unknown(lab)
    rules = latents.Rules(
        wanted.count, wanted.concreteness_min, lab.config.relevance, wanted.scope, lab.config.seed
    )
    prompts = _activations(lab, [prompt_pair(lab, q) for q in lab.questions])
    answers = _activations(lab, lab.engine.answers(lab.questions[:NORM_QUESTIONS]))
    return latents.select(rules, lab.questions, prompts, answers, lab.labels, _rater(lab))


def _rater(lab: Lab) -> latents.Rate:
    """What rates the labels that come without a rating; made when there are such."""

    def rate(labels: Sequence[str]) -> Sequence[float | None]:
        lab.ui.say(f"rating {len(labels)} labels by {lab.config.directions.rater!r}")
        return make_rater(lab.config.directions.rater, engine=lab.engine)(labels)

    return rate


def prompt_pair(lab: Lab, question: str) -> Pair:
    """The prompt as a text to be read; its first token, an outlier in every model, is not pooled."""
    ids = lab.engine.encode_prompt([Message("user", question)])
    return Pair(ids[:1], ids[1:])


def _activations(lab: Lab, pairs: Sequence[Pair]) -> latents.Floats:
    """[pairs, latents], max over tokens."""
    readings = lab.engine.read(pairs, source=SOURCE, layer=lab.config.readout_layer)
    return np.stack([r.values for r in readings])


def _direction(lab: Lab, chosen: Chosen) -> Direction:
    return Direction(
        source=chosen.source,
        index=chosen.index,
        layer=lab.config.model.steer_layer,
        unit=lab.config.calibration.unit,
        label=chosen.label,
        skip=frozenset(chosen.skip),
        positions=lab.config.positions,
    )


# --- strengths --------------------------------------------------------------------------------


def calibrate(lab: Lab, directions: Sequence[Direction]) -> list[Direction]:
    """Directions with their strengths, without those that cannot reach the target."""
    sampling = lab.config.drawing(calibrating=True)
    keys = {d.id: _key(lab, d, sampling) for d in directions}
    open_ones = [d for d in directions if lab.store.get_calibration(keys[d.id]) is None]
    if open_ones:
        lab.ui.stage(f"finding the strength of {len(open_ones)} directions")
        searched = _search(lab, open_ones, keys, sampling)
        shortfall.refuse_unscored(lab)
        _remember(lab, *searched)
    found = [(d, lab.store.get_calibration(keys[d.id])) for d in directions]
    reached = [
        replace(d, strength=c.strength, sd=c.posterior_sd)
        for d, c in found
        if c is not None and c.reached
    ]
    if len(reached) < len(directions):
        lab.ui.say(
            f"{len(directions) - len(reached)} of {len(directions)} directions cannot reach a "
            f"first-attempt score of {lab.config.calibration.target:g}: left out"
        )
    return reached


def strengths_at_half_length(lab: Lab, directions: Sequence[Direction]) -> dict[str, float]:
    """Strength by direction as the published code finds it, on responses of half the length; those
    that cannot reach the target are left out. Its trials are stored, its calibrations are not: a
    resume finds the same from the trials."""
    sampling = halved(lab.config.drawing())
    keys = {d.id: _key(lab, d, sampling) for d in directions}
    lab.ui.stage(f"finding the strength of {len(directions)} directions at half length")
    _, outcomes = _search(lab, directions, keys, sampling, "half length, ")
    return {i: c.strength for i, (c, _) in outcomes.items() if c.reached}


def _key(lab: Lab, d: Direction, sampling: Sampling) -> str:
    settings = lab.config.calibration
    allowed = [q for q in lab.questions if q not in d.skip]
    return calibration_key(
        direction=d.id,
        layer=d.layer,
        unit=d.unit,
        positions=d.positions,
        model=lab.config.model.name,
        judge=lab.judge.name,
        sampling=sampling,
        prompts=stable_hash(allowed),
        prompts_per_round=settings.prompts_per_round,
        fresh=settings.fresh,
        settings=settings.settings(),
        seed=lab.config.seed,
        variant=lab.config.variant,
    )


def _search(
    lab: Lab,
    directions: Sequence[Direction],
    keys: dict[str, str],
    sampling: Sampling,
    prefix: str = "",
) -> tuple[Calibrator, dict[str, Outcome]]:
    """All directions together, one batch of trials a round; then fresh trials at each strength.
    `prefix` begins the arms' names."""
    settings = lab.config.calibration
    by_id = {d.id: d for d in directions}
    allowed = {d.id: [q for q in lab.questions if q not in d.skip] for d in directions}
    plans = {i: PromptPlan(len(allowed[i]), i, lab.config.seed, settings.fresh) for i in by_id}
    calibrator = Calibrator(by_id, settings.settings())

    def score(
        strengths: dict[str, float], draws: dict[str, list[tuple[int, int]]], arm: str
    ) -> Any:
        trials = {
            i: [
                _trial(lab, by_id[i].add(strength), allowed[i][q], seed, prefix + arm, sampling)
                for q, seed in draws[i]
            ]
            for i, strength in strengths.items()
        }
        every = [t for each in trials.values() for t in each]
        lab.execute(every, f"calibration, {prefix}{arm}")
        return {i: [lab.first_score(t) for t in each] for i, each in trials.items()}

    number = 0
    while strengths := calibrator.ask():
        draws = {i: plans[i].round(number, settings.prompts_per_round) for i in strengths}
        calibrator.tell(score(strengths, draws, f"round {number + 1}"))
        number += 1
    strengths = calibrator.verify()
    fresh = score(strengths, {i: plans[i].fresh(settings.fresh) for i in strengths}, "fresh")
    outcomes = {i: calibrator.conclude(i, fresh.get(i, []), keys[i]) for i in by_id}
    return calibrator, outcomes


def _remember(lab: Lab, calibrator: Calibrator, outcomes: dict[str, Outcome]) -> None:
    failures = lab.store.get_artifact("calibration_failures", {})
    for i, (calibration, reason) in outcomes.items():
        lab.store.put_calibration(calibration, calibrator.steps(i))
        if reason:
            failures[i] = reason
    lab.store.put_artifact("calibration_failures", failures)


def _trial(
    lab: Lab, add: Intervention, question: str, seed: int, arm: str, sampling: Sampling
) -> Trial:
    return Trial(
        protocol=CALIBRATION,
        arm=arm,
        model=lab.config.model.name,
        question=question,
        messages=(Message("user", question),),
        sampling=sampling,
        seed=seed,
        interventions=(add,),
        variant=lab.config.variant,
    )
