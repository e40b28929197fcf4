"""Fewer directions than wanted, or none: said in a line with where they went, or refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from steerback.errors import UserError
from steerback.judge.verify import read_notes
from steerback.lab import SOURCE, Lab
from steerback.latents import Funnel
from steerback.protocols.base import Direction
from steerback.types import CALIBRATION


def none_left(funnel: Funnel) -> UserError:
    """What to raise where every direction was left out, with how many each rule left."""
    return UserError(
        f"directions: none is left to steer with ({_left(funnel.as_json())}); check the labels, or "
        "relax concreteness_min, relevance or scope"
    )


def check_directions(lab: Lab, reached: Sequence[Direction]) -> None:
    """Says that fewer directions were chosen than wanted, and how many each rule left. Raises UserError
    with the search's reasons if none of them reached the target."""
    config = lab.config
    wanted = len(config.directions.indices) or config.directions.count
    found = len(lab.store.get_artifact("latents", []))
    if found < wanted:
        left = _left(lab.store.get_artifact("funnel", []))
        lab.ui.say(f"{found:,} of {wanted:,} directions wanted ({left})")
    if reached:
        return
    reasons = Counter(lab.store.get_artifact("calibration_failures", {}).values())
    often = "; ".join(f"{reason} ({n})" for reason, n in reasons.most_common(3))
    raise UserError(
        f"no direction reaches a first-attempt score of {config.calibration.target:g}: {often}; "
        "change [calibration] or the directions, and choose another folder"
    )


def _left(funnel: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(f"{stage['rule']}: {stage['left']:,}" for stage in funnel)


def refuse_unscored(lab: Lab) -> None:
    """Raises UserError with the judge's reason if it scored no response of the search."""
    judged = [
        lab.verdicts[t.key]
        for t, _ in lab.store.trials(protocol=CALIBRATION)
        if t.key in lab.verdicts
    ]
    if any(v.status == "ok" for v in judged):
        return
    notes = (read_notes(v.raw) for v in judged)
    reasons = Counter(n.why if n else v.raw for v, n in zip(judged, notes, strict=True))
    why = reasons.most_common(1)[0][0] if reasons else "nothing was judged"
    raise UserError(
        f"judge {lab.config.judge!r} could score none of {len(judged):,} calibration responses: "
        f"{why}; choose a judge for these questions, or questions for this judge"
    )


def say_unknown(lab: Lab) -> None:
    """Says which latents the labels name and the SAE does not have."""
    n = lab.engine.sources[SOURCE].n
    unknown = [k for k in lab.labels if not 0 <= k < n]
    if unknown:
        named = ", ".join(map(str, unknown[:3])) + (", ..." if len(unknown) > 3 else "")
        lab.ui.say(
            f"labels name {len(unknown):,} of {len(lab.labels):,} latents that the SAE does not have "
            f"({named}; it has {n:,}): ignored"
        )
