"""The model card of a tuned model: how it was made, and what is not known of it."""

from __future__ import annotations

from typing import Any


def text(record: dict[str, Any]) -> str:
    base, data, settings = record["base"], record["data"], record["settings"]
    made = record["made_with"]
    lines = [
        "---",
        f"base_model: {base['source']}",
        "tags: [steerback, self-correction]",
        "---",
        "",
        f"# {base['name']}, tuned on self-corrections",
        "",
        _what(record),
        "",
        f"- Base: `{base['source']}`, content hash `{base.get('model_hash') or 'unknown'}`.",
        f"- Rows: {data['rows']:,} of `{data['file']}` (SHA-256 `{data['sha256']}`), "
        f"{data['corrections']:,} self-corrections ({data['share']:.0%}); "
        f"{data['validation_rows']:,} more to validate on. No question of the packaged evaluation "
        "sets is among them.",
        f"- Loss on: {', '.join(settings['trained'])}.",
        f"- Method: {_method(settings)}; seed {settings['seed']}.",
        *_steering(record["steering"], settings),
        f"- Loss: {record['loss']['first']:.3f} at first, {record['loss']['last']:.3f} at last"
        + _validation(record["loss"]["validation"])
        + ".",
        f"- Made in {record['minutes']:g} minutes on {made['system']}, "
        + ", ".join(f"{k} {v}" for k, v in made["packages"].items())
        + ".",
        f"- Weights: SHA-256 `{record['sha256']}`.",
    ]
    if record["command"]:
        lines += ["", "```", record["command"], "```"]
    lines += [
        "",
        "Whether it steers back is a question for a run, not for this card: "
        "`steerback finetune compare` measures it beside its base.",
    ]
    return "\n".join(lines) + "\n"


def _what(record: dict[str, Any]) -> str:
    if record["steering"] is None:
        return "Was trained on answers that leave the topic, say so and come back."
    target = record["settings"]["steering"]["target"]
    kept = "to come back" if target == "correction" else "to answer as if nothing had happened"
    return f"Was trained {kept} while a direction was added to its residual stream."


def _method(settings: dict[str, Any]) -> str:
    rest = (
        f"rate {settings['rate']:g}, {settings['epochs']} times through the rows, "
        f"{settings['rows']} x {settings['accumulate']} rows a step"
    )
    if settings["method"] == "full":
        return f"every weight, {rest}"
    return (
        f"LoRA of rank {settings['rank']}, alpha {settings['alpha']:g}, dropout "
        f"{settings['dropout']:g} on all linear layers, {rest}"
    )


def _steering(used: dict[str, Any] | None, settings: dict[str, Any]) -> list[str]:
    if used is None:
        return []
    own = settings["steering"]
    low, high = own["strength"]
    layers = ", ".join(map(str, used["layers"]))
    return [
        f"- Steered while it was trained: {own['corrections']:.0%} of self-corrections and "
        f"{own['ordinary']:.0%} of ordinary answers, along {len(used['indices'])} directions "
        f"({own['directions']}) at layer {layers}, strength {low:g} to {high:g} {own['unit']}, "
        f"positions {own['positions']}; {len(used['held_out'])} directions were held out."
    ]


def _validation(loss: float | None) -> str:
    return "" if loss is None else f", {loss:.3f} on the validation rows"
