"""How much memory a run needs, from the shape of the model alone: nothing is loaded.

    weights     parameters x bytes of the number format; with `quantize`, the decoder layers' matrices at
                1 byte (int8, fp8) or half of one (int4) and their scales, all else at the number format
    cache       2 x layers x key/value heads x head size x bytes x (rows x (tokens + 1), in pages of
                32, and one page more)
    directions  (steered + clamped latents) x d_model x 4 bytes: the rows of the SAE that are in use
    step        24 bytes x rows x vocabulary (logits to probabilities, and their sum in float64), and
                16 bytes x rows x tokens (history, random numbers)
    encoder     4 bytes x d_model x latents: the whole encoder in float32, while latents are chosen; and
                8 bytes x activations, of which 2^23 are held at most

Rows are the slots, in float32 on a processor up to the next multiple of 16 or more (engine/exact.py).
`encoder` and `step` are not needed at the same time: the larger one counts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from steerback.errors import UserError

Quantize = Literal["none", "int8", "fp8", "int4"]
BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
PAGE = 32
"""Tokens of a page of the cache (engine/fused.py)."""
READ_CELLS = 2**23
"""Activations held at most while latents are chosen (engine/reading.py), each with a copy."""
INT4_BLOCK = 64
"""Weights that share one float32 scale (NF4)."""
BLOCK = 16
"""Multiple of rows that processors ask for most often, in float32."""
PROMPT = 128
"""Tokens that a prompt is taken to have."""
GIB = 2**30


@dataclass(frozen=True)
class Shape:
    """What of a decoder counts for its memory."""

    layers: int
    d_model: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    sandwich: bool
    """Norms after attention and after the MLP too (Gemma 2)."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """From the fields of a Llama-like config.json. KeyError if one of them is missing."""
        heads = config["num_attention_heads"]
        return cls(
            layers=config["num_hidden_layers"],
            d_model=config["hidden_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            intermediate=config["intermediate_size"],
            vocab=config["vocab_size"],
            tied=bool(config.get("tie_word_embeddings")),
            sandwich=config.get("model_type") == "gemma2",
        )

    @property
    def matrices(self) -> int:
        """Parameters of the decoder layers' matrices: what quantisation shrinks."""
        attention = self.d_model * self.head_dim * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.d_model * self.intermediate)

    @property
    def matrix_rows(self) -> int:
        """Output rows of those matrices: each has a scale of its own in int8 and fp8."""
        attention = self.head_dim * (self.heads + 2 * self.kv_heads) + self.d_model
        return self.layers * (attention + 2 * self.intermediate + self.d_model)

    @property
    def others(self) -> int:
        """Parameters of embedding, head and norms."""
        norms = self.layers * (4 if self.sandwich else 2) * self.d_model + self.d_model
        return (1 if self.tied else 2) * self.vocab * self.d_model + norms

    @property
    def parameters(self) -> int:
        return self.matrices + self.others


@dataclass(frozen=True)
class Needs:
    """Bytes, by what they are for."""

    weights: float
    cache: float
    directions: float
    step: float
    encoder: float

    @property
    def total(self) -> float:
        return self.weights + self.cache + self.directions + max(self.step, self.encoder)


def estimate(
    shape: Shape,
    *,
    dtype: str,
    slots: int,
    tokens: int,
    directions: int,
    latents: int,
    quantize: Quantize = "none",
    block: int = 1,
) -> Needs:
    """dtype: of weights and cache. tokens: longest prompt and response together. directions: latents
    steered with or clamped. latents: of the whole SAE. block: rows are a multiple of it."""
    size = BYTES[dtype]
    rows = -(-slots // block) * block
    pages = 1 + rows * -(-(tokens + 1) // PAGE)
    per_token = 2 * shape.layers * shape.kv_heads * shape.head_dim * size
    return Needs(
        weights=_weights(shape, size, quantize),
        cache=per_token * pages * PAGE,
        directions=4.0 * directions * shape.d_model,
        step=24.0 * rows * shape.vocab + 16.0 * rows * tokens,
        encoder=4.0 * shape.d_model * latents + 8.0 * min(READ_CELLS, tokens * latents),
    )


def _weights(shape: Shape, size: float, quantize: Quantize) -> float:
    others = size * shape.others
    if quantize == "none":
        return others + size * shape.matrices
    if quantize == "int4":
        return others + (0.5 + 4 / INT4_BLOCK) * shape.matrices
    return others + shape.matrices + 4.0 * shape.matrix_rows


@dataclass(frozen=True)
class Machine:
    """Where a model could be put."""

    name: str
    bytes: float


def known_quantisation(name: str) -> Quantize:
    """That name, checked. Raises UserError for another."""
    known: tuple[Quantize, ...] = get_args(Quantize)
    for way in known:
        if way == name:
            return way
    raise UserError(f"quantize is {name!r}; use {', '.join(known)}")


def machine() -> Machine:
    """The largest GPU here, or host memory where there is none."""
    import torch

    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        best = max(cards, key=lambda c: c.total_memory)
        return Machine(best.name, best.total_memory)
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return Machine("host memory of unknown size", 0.0)
    return Machine("host memory", float(size))
