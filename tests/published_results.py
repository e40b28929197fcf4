"""Result files in the published schema, and what they say, computed the straightforward way."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

PROMPTS = [f"Explain how to do thing {n}." for n in range(12)]
FIRST, RESTART, LAST = "Boats have sails.", " Wait, that's not right.", " Mix the flour first."


def config(**values: Any) -> dict[str, Any]:
    return {
        "prompts_file": "prompts.txt",
        "model_name": "meta-llama/Meta-Llama-3.3-70B-Instruct",
        "judge_model_name": "claude-haiku-4-5-20251001",
        "disable_steering": False,
        "max_completion_tokens": 512,
        "target_score_normalized": 0.3,
        **values,
    }


def trial(rng: random.Random, latent: int, prompt: str, strength: float) -> dict[str, Any]:
    """All that the schema allows: judged, restarted, no attempt, no score, a judge's error."""
    restarted = rng.random() < 0.3
    response = FIRST + (RESTART + LAST if restarted else "")
    texts = [FIRST, LAST] if restarted else [FIRST]
    attempts = [{"attempt_text": t, "score": rng.choice([0, 15, 20.5, 85, 100])} for t in texts]
    score: Any = {"raw_response": "feedback <json>...</json>", "attempts": attempts, "mood": "calm"}
    kind, error = rng.random(), None
    if kind < 0.08:
        score = {"raw_response": "no JSON", "error": "No JSON found in response"}
        error = score["error"]
    elif kind < 0.16:
        score["attempts"] = []
    elif kind < 0.22:
        score = {"raw_response": None}
    elif kind < 0.30:
        attempts[rng.randrange(len(attempts))]["score"] = rng.choice([None, "high", 140])
    elif kind < 0.34:
        score = None
    return {
        "prompt": prompt,
        "feature_index_in_sae": latent,
        "feature_label": f"boats {latent}",
        "threshold": strength,
        "seed": rng.randrange(10**6),
        "response": response,
        "score": score,
        "error": error,
        "own_field": {"of": "the user"},
    }


def result(
    seed: int, latents: int = 20, strengths: tuple[float, ...] = (), **top: Any
) -> dict[str, Any]:
    """One result file. strengths: several for each latent, as the multi-boost experiment has them."""
    rng = random.Random(seed)
    own = config(**top.pop("experiment_config", {}))
    template = own.get("prompt_variant_template")
    features = []
    for latent in range(latents):
        base = round(rng.uniform(2, 12), 2)
        asked = rng.sample(PROMPTS, 6)
        if template:
            asked = [
                template.replace("{prompt}", p).replace("{latent_label}", f"boats {latent}")
                for p in asked
            ]
        features.append(
            {
                "feature_index_in_sae": latent,
                "feature_label": f"boats {latent}",
                "threshold": base,
                "trials": [trial(rng, latent, p, s) for s in strengths or (base,) for p in asked],
                "error": None,
            }
        )
    features.append(
        {
            "feature_index_in_sae": 999,
            "feature_label": "failed",
            "threshold": None,
            "trials": [],
            "error": "RuntimeError: out of memory",
        }
    )
    return {"experiment_config": own, "results_by_feature": features, **top}


def write(path: Path, data: dict[str, Any]) -> Path:
    path.write_text(json.dumps(data, indent=4), "utf-8")
    return path


def write_lines(path: Path, data: dict[str, Any]) -> Path:
    lines = [
        json.dumps({**t, "experiment_config": data["experiment_config"]})
        for f in data["results_by_feature"]
        for t in f["trials"]
    ]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def reference(trials: list[dict[str, Any]]) -> dict[str, float]:
    """Counts and rates of trials, from the paper's definitions alone."""
    first, deltas, restarted, missing = [], [], 0, 0
    for t in trials:
        score = t["score"] or {}
        attempts = [] if t["error"] or "error" in score else score.get("attempts") or []
        ends = [a["score"] for a in (attempts[:1] + attempts[-1:])]
        valid = [isinstance(s, int | float) and 0 <= s <= 100 for s in ends]
        if not ends or not all(valid):
            missing += 1
            continue
        first.append(ends[0])
        if len(attempts) > 1:
            restarted += 1
            deltas.append(ends[1] - ends[0])
    improved = sum(d > 0 for d in deltas)
    return {
        "n": len(first),
        "missing": missing,
        "restarted": restarted,
        "improved": improved,
        "multi_attempt": restarted / len(first),
        "esr": improved / len(first),
        "cond_improvement": improved / restarted,
        "first_score": sum(first) / len(first),
    }


def trials_of(data: dict[str, Any]) -> list[dict[str, Any]]:
    return [t for f in data["results_by_feature"] for t in f["trials"]]
