"""A trial of the published code as records of ours."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from steerback.imports.files import ResultFile, Row
from steerback.judge.locate import Text
from steerback.presets import find_preset, preset
from steerback.protocols.clamping import DETECTORS, RANDOM
from steerback.types import Attempt, Generation, Intervention, Message, Sampling, Trial, Verdict

SOURCE = "sae"
PENALTIES = (("70b", 1.2), ("8b", 1.15))
"""Repetition penalty by what the model's name holds, as the code sets it; it stands in no file."""
PENALTY = 1.1


def convert(row: Row, file: ResultFile, name: str) -> tuple[Trial, Generation, Verdict]:
    """name: of the file, which alone tells random latents from detectors."""
    protocol, arm = _arm(row, file, name)
    model = str(file.config.get("model_name") or "unknown")
    trial = Trial(
        protocol=protocol,
        arm=arm,
        model=model,
        question=_question(row, file),
        messages=(Message("user", row.prompt),),
        sampling=_sampling(model, file),
        seed=row.seed,
        interventions=() if protocol == "baseline" else tuple(_interventions(row, file, model)),
    )
    made = Generation(trial.key, (), (), row.response, "unknown")
    return (
        trial,
        made,
        _verdict(row, trial.key, str(file.config.get("judge_model_name") or "judge")),
    )


# --- what was asked ----------------------------------------------------------------------------


def _arm(row: Row, file: ResultFile, name: str) -> tuple[str, str]:
    if file.config.get("disable_steering"):
        return "baseline", "unsteered"
    if file.config.get("prompt_variant_template"):
        return "metaprompt", str(file.config.get("prompt_variant_id"))
    if file.extra.get("ablated_latents"):
        return "ablation", _ablated(name)
    if file.extra.get("boost_levels") or file.extra.get("n_boost_levels"):
        return "esr", f"strength {row.strength:g}"
    return "esr", "steered"


def _ablated(name: str) -> str:
    found = re.search(r"random_ablation(?:_set(\d+))?", name)
    return f"{RANDOM} {int(found[1] or 0) + 1}" if found else DETECTORS


def _question(row: Row, file: ResultFile) -> str:
    """The prompt without what a meta-prompt added."""
    template = str(file.config.get("prompt_variant_template") or "")
    before, mark, after = template.partition("{prompt}")
    if not mark:
        return row.prompt
    before, after = (part.replace("{latent_label}", row.label) for part in (before, after))
    return row.prompt.removeprefix(before).removesuffix(after)


def _sampling(model: str, file: ResultFile) -> Sampling:
    lower = model.lower()
    penalty = next((p for size, p in PENALTIES if size in lower), PENALTY)
    longest = file.config.get("max_completion_tokens")
    return Sampling(
        temperature=0.6,
        repetition_penalty=penalty,
        max_new_tokens=longest if isinstance(longest, int) and longest > 0 else 512,
    )


def _interventions(row: Row, file: ResultFile, model: str) -> Iterator[Intervention]:
    layer = _layer(model)
    yield Intervention("add", SOURCE, row.index, row.strength, layer, positions="all")
    for latent in file.extra.get("ablated_latents") or []:
        yield Intervention("clamp", SOURCE, int(latent), 0.0, layer, positions="all")


def _layer(model: str) -> int:
    """Of the name, as the code's Gemma configurations have it; else the preset's; 0 if unknown."""
    named = re.search(r"-layer-(\d+)$", model)
    if named:
        return int(named[1])
    known = find_preset(model.replace("/Meta-Llama-", "/Llama-"))
    return int(preset(known)["model"]["steer_layer"]) if known else 0


# --- what was said of it -----------------------------------------------------------------------


def _verdict(row: Row, key: str, judge: str) -> Verdict:
    """Not scored is never a score of 0: a judge that failed, no attempt, no score at all."""
    score = row.score if isinstance(row.score, Mapping) else {}
    problem = row.error or score.get("error")
    raw = json.dumps(row.score, ensure_ascii=False)
    if problem:
        return Verdict(key, judge, (), "error", raw if score else str(problem))
    attempts = score.get("attempts")
    if not isinstance(attempts, list) or not attempts:
        return Verdict(key, judge, (), "unscored", raw)
    return Verdict(key, judge, tuple(_attempts(row.response, attempts)), "ok", raw)


def _attempts(response: str, attempts: Sequence[Any]) -> Iterator[Attempt]:
    """Where each attempt's text stands in the response; a text that does not stand there is empty."""
    text, at = Text(response), 0
    for attempt in attempts:
        fields = attempt if isinstance(attempt, Mapping) else {}
        place = text.find(str(fields.get("attempt_text") or ""), at)
        start, end = place or (at, at)
        yield Attempt(start, end, _score(fields.get("score")))
        at = end


def _score(value: Any) -> float | None:
    """None for what is no number; out of 0-100 too, which counts as missing."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value) if 0 <= value <= 100 else None
