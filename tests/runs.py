"""Small runs on the packaged organism, for tests: a few latents, a few questions, short searches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from steerback import protocols
from steerback.config import RunConfig
from steerback.presets import from_preset


def small(folder: Path, organism: str = "resister", **changes: Any) -> RunConfig:
    amount = {"prompts_per_direction": 3}
    values: dict[str, Any] = {
        "folder": str(folder),
        "directions": {"count": 4},
        "calibration": {"rounds": 2, "prompts_per_round": 3, "fresh": 5},
        "sampling": {"max_new_tokens": 48},
        "settings": {"baseline": amount, "esr": amount},
    }
    return from_preset(f"organism-{organism}", protocols.settings(), **{**values, **changes})
