"""How a model is trained: the settings as a table, and the packaged ones."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from steerback import tomlfile
from steerback.errors import UserError, nearest
from steerback.finetune.rows import PARTS
from steerback.mappings import merge
from steerback.tomlfile import Document, Table
from steerback.types import Unit


class SteeringSettings(Table):
    """Interventions that are live while a row is trained on."""

    directions: Literal["row", "sae", "vectors", "random"] = Field(
        default="sae",
        description="row: the one that the row was written under. sae: latents of the SAE, one whose "
        "label is the row's subject if there is one. vectors: of the file. random: drawn at random.",
    )
    vectors: str = Field(default="", description="File of vectors, for directions = vectors.")
    random: int = Field(default=256, ge=1, description="How many random directions there are.")
    held_out: float = Field(
        default=0.5,
        ge=0,
        lt=1,
        description="Share of the labels (without labels: of the directions) that training never "
        "sees, so that there are directions to evaluate on.",
    )
    layers: list[int] = Field(
        default=[],
        description="0-based layers, one drawn per row; none: the steer layer of the model.",
    )
    strength: list[float] = Field(
        default=[0.4, 1.3],
        min_length=2,
        max_length=2,
        description="Range that strengths are drawn from, in `unit`.",
    )
    unit: Unit = Field(default="resid", description="resid (median residual norms) or raw.")
    norm: Literal["pass", "live", "base"] = Field(
        default="live",
        description="The residual norm that strengths are in units of. base: as it was before "
        "training, which a model can escape by letting its stream grow. live: as it is at that step. "
        "pass: that of the very pass, with its gradient, so that growing changes nothing.",
    )
    go_along: bool = Field(
        default=True,
        description="Whether the loss of a steered self-correction is taken on its off-topic part too. "
        "Without it a model learns to resist at once, with nothing to come back from.",
    )
    positions: str = Field(
        default="generated", description="Tokens that are steered: generated, all or from:N."
    )
    corrections: float = Field(
        default=1.0, ge=0, le=1, description="Share of self-corrections that are steered."
    )
    ordinary: float = Field(
        default=0.0, ge=0, le=1, description="Share of ordinary answers that are steered."
    )
    target: Literal["correction", "clean"] = Field(
        default="correction",
        description="What a steered row teaches. correction: itself. clean: its answer alone, as if "
        "nothing had happened (silent resistance).",
    )

    @field_validator("strength")
    @classmethod
    def _in_order(cls, value: list[float]) -> list[float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError("it should hold two numbers above 0, the smaller one first")
        return value


class TrainSettings(Table):
    method: Literal["lora", "full"] = Field(
        default="lora", description="lora: adapters on all linear layers. full: every weight."
    )
    rank: int = Field(default=32, ge=1, description="Rank of the adapters.")
    alpha: float = Field(default=16.0, gt=0, description="Scale of the adapters, over the rank.")
    dropout: float = Field(default=0.05, ge=0, lt=1, description="Dropout before the adapters.")
    rate: float = Field(default=2e-4, gt=0, description="Peak learning rate (AdamW).")
    floor: float = Field(
        default=0.0, ge=0, le=1, description="Share of the peak rate that the cosine ends on."
    )
    warm_up: int = Field(default=10, ge=0, description="Steps of linear warm-up.")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's decay of weights.")
    beta2: float = Field(default=0.999, gt=0, lt=1, description="AdamW's second beta.")
    epochs: int = Field(default=4, ge=1, description="Times that every row is seen.")
    rows: int = Field(default=2, ge=1, description="Rows of a forward pass.")
    accumulate: int = Field(default=4, ge=1, description="Forward passes of a step.")
    longest: int = Field(default=4096, ge=8, description="Most tokens of a row.")
    validation: float = Field(
        default=0.05, ge=0, lt=1, description="Share of the questions that are kept to validate on."
    )
    trained: list[str] = Field(
        default=["acknowledgement", "answer"],
        min_length=1,
        description="Parts that the loss is taken on: prompt, off_topic, acknowledgement, answer.",
    )
    sentence_weight: float = Field(
        default=1.0,
        gt=0,
        description="Loss weight of the first token after each sentence (1: as published), where it is "
        "decided whether to restart.",
    )
    share: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of self-corrections among the rows; none: as the file has it.",
    )
    most: int | None = Field(default=None, ge=2, description="Most rows; none: all.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Of order, adapters and steering.")
    checkpoint: int = Field(default=200, ge=1, description="Steps between checkpoints.")
    steering: SteeringSettings | None = Field(
        default=None, description="Interventions that are live during training; none: no steering."
    )

    @field_validator("trained")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        for part in value:
            if part not in PARTS:
                raise ValueError(
                    f"it should hold parts of a row ({', '.join(PARTS)}), not {part!r}"
                )
        return value


def packaged() -> dict[str, dict[str, Any]]:
    """Packaged settings by name."""
    text = (files("steerback") / "data" / "finetune.toml").read_text("utf-8")
    return tomlfile.parse(text)


def load(spec: str, changes: dict[str, Any]) -> TrainSettings:
    """Packaged settings, or those of a TOML file, with `changes` laid over them.

    Raises UserError, with file, line and key for a file.
    """
    known = packaged()
    if spec in known:
        document = Document(f"settings {spec}", "", merge(known[spec], changes))
    elif Path(spec).is_file():
        document = tomlfile.read(spec)
        document = Document(document.name, document.text, merge(document.data, changes))
    else:
        raise UserError(f"no file or packaged settings {spec!r}; {nearest(spec, known)}")
    try:
        return TrainSettings.model_validate(document.data)
    except ValidationError as error:
        raise tomlfile.explain(error, TrainSettings, document) from None
