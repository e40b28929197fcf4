"""Adapters of the peft library around a model; without them, every weight is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from steerback.engine.loading import no_loading_bar
from steerback.errors import UserError
from steerback.finetune.settings import TrainSettings
from steerback.types import derive_seed


def trainable(model: Any, settings: TrainSettings) -> Any:
    """The model with those parameters free that are to be trained, adapters put around it for `lora`.

    Raises UserError if peft is needed and not installed.
    """
    if settings.method == "full":
        return model.requires_grad_(True)
    try:
        import peft
    except ImportError:
        raise UserError(
            "method 'lora' needs the peft package; pip install 'steerback[finetune]', or train every "
            "weight: --full"
        ) from None
    torch.manual_seed(derive_seed(settings.seed, "adapters") % 2**62)
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model.requires_grad_(False), config)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """`folder/merged` loads in plain transformers; `folder/adapter` (of `lora`) in peft."""
    merged = folder / "merged"
    with no_loading_bar():
        plain = model
        if hasattr(model, "merge_and_unload"):
            model.save_pretrained(str(folder / "adapter"))
            plain = model.merge_and_unload()
        plain.eval().requires_grad_(False).save_pretrained(str(merged))
    tokenizer.save_pretrained(str(merged))
