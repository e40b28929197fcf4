"""Three ways in which the published code runs a model otherwise than its authors meant it to be run.

They are properties of a trial (`Trial.variant`), so that arms with and without one are paired.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

from steerback import chat
from steerback.engine.hooked import HookedModel
from steerback.errors import UserError, nearest
from steerback.switches import IN_ENGINE

DOUBLE_HEADER, HALVED, MLP_SITE = IN_ENGINE

HEADER = "<|begin_of_text|><|start_header_id|>assistant<|end_header_id|>"
"""What the published code appends: [128000, 128006, 78191, 128007] in Llama 3."""


def check(model: HookedModel, tokenizer: chat.Tokenizer, variant: Sequence[str]) -> None:
    """Raises UserError for a way that is not known, or that this model does not have."""
    for way in variant:
        if way == DOUBLE_HEADER:
            _second_header(tokenizer)
        elif way == HALVED:
            _last_mlp(model)
        elif way == MLP_SITE:
            at_mlp(model)
        else:
            raise UserError(f"unknown variant {way!r}; {nearest(way, IN_ENGINE)}")


def prompt_ids(tokenizer: chat.Tokenizer, ids: list[int], variant: Sequence[str]) -> list[int]:
    """The prompt with the second header, if that is in force."""
    return ids + _second_header(tokenizer) if DOUBLE_HEADER in variant else ids


def _second_header(tokenizer: chat.Tokenizer) -> list[int]:
    if "<|start_header_id|>" not in tokenizer.get_vocab():
        raise UserError(f"switch {DOUBLE_HEADER!r}: this model's chat has no Llama 3 headers")
    return chat.encode_text(tokenizer, HEADER)


# --- logits = head(norm(2 r + mlp)) ------------------------------------------------------------
#
# A norm does not see the scale of what it normalises (but for its epsilon, some 1e-5 of the mean
# square), so norm(2 r + mlp) = norm(r + mlp / 2): half of the last MLP's output, exact in floats.


@contextmanager
def halved(model: HookedModel) -> Iterator[None]:
    """The last layer's MLP gives half of its output inside the block."""
    mlp = _last_mlp(model)
    weight: Tensor = mlp.down_proj.weight
    if type(weight.data) is Tensor and not weight.is_meta and mlp.down_proj.bias is None:
        # in place: the fused decoder reads the same storage
        whole = weight.data.clone()
        weight.data.mul_(0.5)
        try:
            yield
        finally:
            weight.data.copy_(whole)
        return
    handle = mlp.register_forward_hook(lambda _module, _inputs, output: output / 2)
    try:
        yield
    finally:
        handle.remove()


def _last_mlp(model: HookedModel) -> Any:
    last = model.layers[-1]
    mlp = getattr(last, "mlp", None)
    if not hasattr(mlp, "down_proj") or hasattr(last, "post_feedforward_layernorm"):
        raise UserError(
            f"switch {HALVED!r}: in {type(model.model).__name__} the last MLP's output is not added "
            "to the stream as it is; the published code does this to Llama alone"
        )
    return mlp


# --- the output of the MLP as the place where latents are read and edited ------------------------


def at_mlp(model: HookedModel) -> HookedModel:
    """The same model with sites on what each layer's MLP adds to the stream. What is added there is
    added to the stream; what is read there is what the MLP gave."""
    other = copy.copy(model)
    other.layers = nn.ModuleList(_mlp_output(model, layer) for layer in model.layers)
    return other


def _mlp_output(model: HookedModel, layer: nn.Module) -> nn.Module:
    """The last module that the MLP's output passes before it is added: its norm, where it has one."""
    for name in ("post_feedforward_layernorm", "mlp"):
        found = getattr(layer, name, None)
        if isinstance(found, nn.Module):
            return found
    raise UserError(f"switch {MLP_SITE!r}: {type(model.model).__name__} has no MLP by that name")


def in_force(model: HookedModel, variant: Sequence[str]) -> Any:
    """A context in which the weights are as the variant wants them."""
    return halved(model) if HALVED in variant else nullcontext()
