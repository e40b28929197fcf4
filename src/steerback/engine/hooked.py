"""Any causal transformer of the transformers library, through its own forward and forward hooks.

The fallback for architectures without a fused decoder, and the reference it is checked against. The
cache hands each row its own slot and position, so slots work here too; hooks live in a context
manager and cannot outlast a pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from steerback.engine import exact
from steerback.engine.base import Sites
from steerback.errors import UserError

WIDTH_STEP = 32
"""Attention runs over a multiple of this many cached tokens."""


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The list of decoder layers, found by its length. UserError if there is none, or a choice."""
    config: Any = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    n = getattr(text, "num_hidden_layers", None)
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n
    }
    # the outermost list wins: experts or heads of one layer may be as many as there are layers
    outer = [name for name in found if not any(name.startswith(other + ".") for other in found)]
    if len(outer) != 1:
        what = "has no list" if not outer else f"has several lists ({', '.join(outer)})"
        raise UserError(
            f"{type(model).__name__} {what} of {n} decoder layers; it cannot be steered"
        )
    return found[outer[0]]


@contextmanager
def hooked(
    layers: nn.ModuleList, sites: Sites, device: torch.device | None = None
) -> Iterator[None]:
    """Apply sites to the outputs of decoder layers; the hooks are gone afterwards, come what may.

    device: where sites want the stream; None is where each layer leaves it.
    """

    def hook(site: Any) -> Any:
        def run(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            h = output[0] if isinstance(output, tuple) else output
            flat = h.reshape(-1, h.shape[-1])
            # a layer of a model spread over devices may be elsewhere than the edits are
            here = flat if device is None else flat.to(device)
            new = site(here).to(h.device).view(h.shape)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return run

    handles = [layers[i].register_forward_hook(hook(site)) for i, site in sites.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class Cursor:
    """Where the pass in progress writes, shared by the layers of the cache."""

    slots: Tensor
    """[rows]"""
    positions: Tensor | None = None
    """[rows] on a decode step; None while whole prompts are read."""
    width: int = 0
    """Keys that a pass attends to; 0 is those of its own tokens."""


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer, [slots, kv_heads, capacity, head_dim]."""

    is_sliding = False

    def __init__(self, slots: int, capacity: int, cursor: Cursor) -> None:
        super().__init__()
        self.slots, self.capacity, self.cursor = slots, capacity, cursor
        self.past: tuple[Tensor, Tensor] | None = None
        """Keys and values [1, kv_heads, length, head_dim] of the opening."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        def room(like: Tensor) -> Tensor:
            return like.new_zeros(self.slots, like.shape[1], self.capacity, like.shape[3])

        self.keys, self.values = room(key_states), room(value_states)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        cursor = self.cursor
        slots = cursor.slots.to(key_states.device)
        if cursor.positions is None:
            if self.past is not None:
                key_states, value_states = (
                    torch.cat([old.expand(len(new), -1, -1, -1), new], 2)
                    for old, new in zip(self.past, (key_states, value_states), strict=True)
                )
            n = key_states.shape[2]
            self.keys[slots, :, :n], self.values[slots, :, :n] = key_states, value_states
            return key_states, value_states
        positions = cursor.positions.to(key_states.device)
        self.keys[slots, :, positions] = key_states[:, :, 0]
        self.values[slots, :, positions] = value_states[:, :, 0]
        rows = len(slots)
        return self.keys[:rows, :, : cursor.width], self.values[:rows, :, : cursor.width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return (self.cursor.width or query_length), 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return self.capacity


def _home(embedding: Tensor) -> torch.device:
    """Where token ids go: the embedding's device, or the processor where it is kept on disk."""
    return torch.device("cpu") if embedding.device.type == "meta" else embedding.device


@dataclass
class SlotCache:
    layers: list[SlotLayer]
    cursor: Cursor
    capacity: int
    opening: int = 0
    """Tokens that all sequences begin with."""


class HookedModel:
    """`Backend` over a transformers model. See `Backend` for the contract of each method."""

    kind = "transformers"

    def __init__(self, model: nn.Module) -> None:
        self.model = cast("Any", model)
        config: Any = self.model.config
        self.config = config.get_text_config() if hasattr(config, "get_text_config") else config
        self.layers = decoder_layers(model)
        self.n_layers = len(self.layers)
        self.d_model = self.config.hidden_size
        self.vocab = self.config.vocab_size
        self.context = getattr(self.config, "max_position_embeddings", None) or 2**20
        embedding = self.model.get_input_embeddings().weight
        self.device, self.dtype = _home(embedding), embedding.dtype
        self.block = exact.measure(exact.products(model), self.device, self.dtype)
        self._windows()

    def _windows(self) -> None:
        """Which masks the forward wants: one, or one per kind of layer."""
        kinds = getattr(self.config, "layer_types", None)
        self.kinds = set(kinds or ())
        self.window: int | None = getattr(self.config, "sliding_window", None)
        odd = self.kinds - {"full_attention", "sliding_attention"}
        if odd or getattr(self.config, "is_encoder_decoder", False):
            kind = ", ".join(sorted(odd)) or "encoder-decoder"
            raise UserError(
                f"{type(self.model).__name__} has {kind} layers: only causal models whose layers "
                "keep keys and values can be batched by slots"
            )

    def _masks(self, queries: Tensor, places: Tensor) -> Any:
        """Additive masks [rows, 1, queries, places] from the positions of queries and of keys."""
        at, key = queries[:, None, :, None], places[None, None, None]
        past = key <= at
        windowed = past & (key > at - self.window) if self.window else past

        def additive(seen: Tensor) -> Tensor:
            zero = torch.zeros((), dtype=self.dtype, device=seen.device)
            return torch.where(seen, zero, -math.inf)

        if "sliding_attention" in self.kinds:
            return {"full_attention": additive(past), "sliding_attention": additive(windowed)}
        return additive(past if self.kinds else windowed)

    def allocate(self, slots: int, capacity: int, opening: Tensor | None = None) -> SlotCache:
        cursor = Cursor(torch.zeros(0, dtype=torch.long))
        layers = [SlotLayer(slots, capacity, cursor) for _ in range(self.n_layers)]
        if opening is None:
            return SlotCache(layers, cursor, capacity)
        n = opening.shape[1]
        read = self.allocate(1, n)
        self.prefill(read, opening, np.array([n]), np.zeros(1, np.int64), {})
        for layer, held in zip(layers, read.layers, strict=True):
            layer.past = held.keys, held.values
        return SlotCache(layers, cursor, capacity, n)

    def move(self, cache: SlotCache, source: int, target: int) -> None:
        for layer in cache.layers:
            for t in (layer.keys, layer.values):
                t[target] = t[source]

    def _pass(
        self,
        cache: SlotCache | None,
        ids: Tensor,
        positions: Tensor,
        places: Tensor,
        sites: Sites,
        last: int | Tensor,
    ) -> Tensor:
        with hooked(self.layers, sites, self.device):
            out = self.model(
                input_ids=ids,
                position_ids=positions,
                attention_mask=self._masks(positions, places),
                past_key_values=Cache(layers=cache.layers) if cache else None,
                use_cache=cache is not None,
                logits_to_keep=last,
            )
        logits: Tensor = out.logits
        return logits

    def step(
        self, cache: SlotCache, tokens: Tensor, lengths: NDArray[np.int64], sites: Sites
    ) -> Tensor:
        width = min(-(-int(lengths.max()) // WIDTH_STEP) * WIDTH_STEP, cache.capacity)
        positions = torch.from_numpy(np.maximum(lengths - 1, 0)).to(self.device)
        rows = torch.arange(len(tokens), device=self.device)
        cursor = cache.cursor
        cursor.slots, cursor.positions, cursor.width = rows, positions, width
        places = torch.arange(width, device=self.device)
        return self._pass(cache, tokens[:, None], positions[:, None], places, sites, 1)[:, 0]

    def prefill(
        self,
        cache: SlotCache,
        ids: Tensor,
        lengths: NDArray[np.int64],
        slots: NDArray[np.int64],
        sites: Sites,
    ) -> Tensor:
        start = cache.opening
        cache.cursor.slots = torch.from_numpy(slots).to(self.device)
        cache.cursor.positions, cache.cursor.width = None, start and start + ids.shape[1]
        ends = torch.from_numpy(lengths - 1).to(self.device)
        with self._only_at(ends):
            return self._sequence(cache, ids, sites, 0, start)[0, : len(ids)]

    @contextmanager
    def _only_at(self, ends: Tensor) -> Iterator[None]:
        """Logits [1, rows or more, vocab] of one place of each row alone. ends: [rows]"""
        rows = torch.arange(len(ends), device=self.device)

        def pick(_module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
            h = inputs[0]
            return exact.filled(h[rows.to(h.device), ends.to(h.device)], self.block.rows)[None]

        handle = self.model.get_output_embeddings().register_forward_pre_hook(pick)
        try:
            yield
        finally:
            handle.remove()

    def _sequence(
        self,
        cache: SlotCache | None,
        ids: Tensor,
        sites: Sites,
        keep: int | Tensor,
        start: int = 0,
    ) -> Tensor:
        """ids: [rows, length], the first of them at position `start`."""
        places = torch.arange(start + ids.shape[1], device=self.device)
        return self._pass(cache, ids, places[start:].expand(len(ids), -1), places, sites, keep)

    def forward(self, ids: Tensor, lengths: Tensor, sites: Sites) -> None:
        self._sequence(None, ids, sites, torch.zeros(1, dtype=torch.long, device=self.device))
