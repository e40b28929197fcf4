"""The architectures that the fused decoder knows, and their weights as it wants them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Family:
    """How an architecture departs from Llama."""

    unit_offset: bool = False
    """Norm weights are stored minus one and applied in float32."""
    sandwich: bool = False
    """Norms after attention and after the MLP too."""
    head_norm: bool = False
    """Norms on each query and key head."""
    scaled_embedding: bool = False


FAMILIES = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(head_norm=True),
    "gemma2": Family(unit_offset=True, sandwich=True, scaled_embedding=True),
}


@dataclass
class Layer:
    """Weights of one decoder layer; `None` where the family has no such norm."""

    qkv: Tensor
    """[(heads + 2 kv_heads) * head_dim, d_model]"""
    qkv_bias: Tensor | None
    out: Tensor
    """[d_model, heads * head_dim]"""
    out_bias: Tensor | None
    gate_up: Tensor
    """[2 * intermediate, d_model]"""
    down: Tensor
    """[d_model, intermediate]"""
    norm_in: Tensor
    norm_mlp: Tensor
    norm_attention_out: Tensor | None
    norm_mlp_out: Tensor | None
    norm_qk: Tensor | None
    """[heads + kv_heads, head_dim]"""
    window: int | None


def supports(model: nn.Module) -> bool:
    """Whether the fused path is exact for this model: a known family with plain weights in one place."""
    config: Any = model.config
    if config.model_type not in FAMILIES:
        return False
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    # quantised weights are a tensor class of their own, inside a plain linear layer
    plain = all(type(m) is nn.Linear and type(m.weight.data) is Tensor for m in linears)
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    mlp_bias = bool(getattr(config, "mlp_bias", False))
    one_place = len({p.device for p in model.parameters()}) == 1
    return plain and one_place and not mlp_bias and rope in ("default", "llama3", "linear", "yarn")


def _stack(linears: list[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """One weight for several linears; the originals become views of it, so nothing is held twice."""
    weight = torch.cat([m.weight.data for m in linears])
    at = 0
    for m in linears:
        m.weight.data = weight[at : at + m.out_features]
        at += m.out_features
    biases = [m.bias for m in linears]
    return weight, None if biases[0] is None else torch.cat([b.data for b in biases])


def norm_weight(family: Family, norm: Any) -> Tensor:
    weight: Tensor = norm.weight.data
    return 1 + weight.float() if family.unit_offset else weight


def layer(config: Any, index: int, module: Any) -> Layer:
    """The weights of one decoder layer of a loaded model, which from then on shares them."""
    family = FAMILIES[config.model_type]
    attention, mlp = module.self_attn, module.mlp
    qkv, qkv_bias = _stack([attention.q_proj, attention.k_proj, attention.v_proj])
    gate_up, _ = _stack([mlp.gate_proj, mlp.up_proj])
    before_mlp = (
        module.pre_feedforward_layernorm if family.sandwich else module.post_attention_layernorm
    )
    bias = attention.o_proj.bias

    def norm(of: Any) -> Tensor:
        return norm_weight(family, of)

    return Layer(
        qkv=qkv,
        qkv_bias=qkv_bias,
        out=attention.o_proj.weight.data,
        out_bias=None if bias is None else bias.data,
        gate_up=gate_up,
        down=mlp.down_proj.weight.data,
        norm_in=norm(module.input_layernorm),
        norm_mlp=norm(before_mlp),
        norm_attention_out=norm(module.post_attention_layernorm) if family.sandwich else None,
        norm_mlp_out=norm(module.post_feedforward_layernorm) if family.sandwich else None,
        norm_qk=_head_norms(config, norm, attention) if family.head_norm else None,
        window=_window(config, index),
    )


def _head_norms(config: Any, norm: Callable[[Any], Tensor], attention: Any) -> Tensor:
    q, k = norm(attention.q_norm), norm(attention.k_norm)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    return torch.cat([q.expand(heads, -1), k.expand(kv_heads, -1)])


def _window(config: Any, index: int) -> int | None:
    """Tokens a layer may look back, itself included; None for all."""
    kinds = getattr(config, "layer_types", None)
    window: int | None = getattr(config, "sliding_window", None)
    if kinds is None:
        return window if config.model_type == "mistral" else None
    return window if kinds[index] == "sliding_attention" else None
