"""The ways in which the published code differs from the paper, each a switch; all are off by default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

CODE = "published-code"
"""Name of the profile with every switch that the published code has for the model."""

Switch = Literal[
    "double-header",
    "halved-last-mlp",
    "mlp-site",
    "steered-prompt",
    "code-penalty",
    "zero-relevance",
    "half-calibration",
]
SWITCHES: tuple[Switch, ...] = get_args(Switch)

ABOUT: dict[Switch, str] = {
    "double-header": "a second BOS and assistant header, without newlines, ends the prompt (Llama 3)",
    "halved-last-mlp": "the last layer's MLP counts half: logits = head(norm(2 r + mlp)) (Llama)",
    "mlp-site": "latents are read from, and clamped on, the MLP's output, not the residual stream",
    "steered-prompt": "the tokens of the prompt are steered too",
    "code-penalty": "the repetition penalty that the code sets for the model",
    "zero-relevance": "latents are left out that fire at all on a prompt, not only its 100 most active",
    "half-calibration": "strengths are found on responses of half the length",
}

IN_ENGINE: tuple[Switch, ...] = ("double-header", "halved-last-mlp", "mlp-site")
"""Those that the engine carries out, and a trial's `variant` names."""

ANY_MODEL: tuple[Switch, ...] = ("steered-prompt", "zero-relevance", "half-calibration")
"""Those that the published code has whatever the model."""


def in_force(config: Mapping[str, Any]) -> tuple[Switch, ...]:
    """The switches of a configuration as JSON values, in the order of `SWITCHES`."""
    profile = config.get("published", {}).get("switches", [])
    own = [*config.get("switches", []), *(profile if config.get("profile") == CODE else [])]
    return tuple(s for s in SWITCHES if s in own)
