"""A decoder for the common families that is faster than the transformers forward, and equal to it.

Query, key and value share one weight, gate and up another; the cache is preallocated in pages, and
grouped attention reads each key a row has once for all its query heads, and no other. Rotary tables,
norms and activation come from the loaded model itself, so that their settings are never read twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from steerback.engine import exact, families
from steerback.engine.base import Sites
from steerback.engine.pages import Pages, View
from steerback.engine.stretch import Scores, Stretch

PAGE = 32
"""Tokens of a page of the cache."""

GRAIN = 2**14
"""Elements up to which PyTorch leaves any activation function to one thread (GELU has the least)."""

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q [..., heads, head_dim], k, v [..., kv_heads, head_dim]) -> [..., heads * head_dim]"""


@dataclass
class PagedCache:
    pages: Pages
    layers: list[tuple[Tensor, Tensor]]
    """Keys [pages, kv_heads, head_dim, PAGE] and values [pages, kv_heads, PAGE, head_dim]: both
    products of a step run along rows."""
    past: Sequence[Stretch] = ()
    """The opening of all sequences, by layer; no page holds it."""

    @property
    def opening(self) -> int:
        """Tokens that all sequences begin with."""
        return self.past[0].length if self.past else 0


class FusedDecoder:
    """`Backend` for the families above. See `Backend` for the contract of each method."""

    kind = "fused"

    def __init__(self, model: nn.Module) -> None:
        config: Any = model.config
        self.config = config
        self.family = families.FAMILIES[config.model_type]
        self.core = cast("Any", model.get_submodule("model"))
        self.n_layers = config.num_hidden_layers
        self.d_model = config.hidden_size
        self.vocab = config.vocab_size
        self.context = config.max_position_embeddings
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        first: Any = self.core.layers[0].self_attn
        self.head_dim = first.head_dim
        self.scale = float(first.scaling)
        self.activation = self.core.layers[0].mlp.act_fn
        self.eps = config.rms_norm_eps
        self.score_cap = getattr(config, "attn_logit_softcapping", None)
        self.logit_cap = getattr(config, "final_logit_softcapping", None)
        head: Any = model.get_submodule("lm_head")
        self.head: Tensor = head.weight.data
        self.embedding: Tensor = self.core.embed_tokens.weight.data
        self.device: torch.device = self.embedding.device
        self.dtype: torch.dtype = self.embedding.dtype
        self.norm_final = families.norm_weight(self.family, self.core.norm)
        self.layers = [families.layer(config, i, m) for i, m in enumerate(self.core.layers)]
        self.block = exact.measure(self._products(), self.device, self.dtype)
        self._tables(min(self.context, 1024))

    def _products(self) -> list[exact.Product]:
        first = self.layers[0]
        weights = (first.qkv, first.out, first.gate_up, first.down, self.head)
        return [exact.linear(weight) for weight in weights]

    def _tables(self, length: int) -> None:
        """Rotary cosines and sines [length, 1, head_dim]; sines signed for a half rotation by roll."""
        at = torch.arange(length, device=self.device)[None]
        like = torch.zeros(1, dtype=self.dtype, device=self.device)
        cos, sin = self.core.rotary_emb(like, at)
        half = self.head_dim // 2
        sign = torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)
        self.cos, self.sin = cos[0, :, None].contiguous(), sign[:, None].contiguous()
        self._places = torch.arange(length, device=self.device)
        self._offsets = torch.arange(PAGE, device=self.device)

    # --- one layer, shared by all passes -------------------------------------------------------

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        if not self.family.unit_offset:
            return F.rms_norm(x, (x.shape[-1],), weight, self.eps)
        return F.rms_norm(x.float(), (x.shape[-1],), weight, self.eps).to(x.dtype)

    def _embed(self, ids: Tensor) -> Tensor:
        x = F.embedding(ids, self.embedding)
        if self.family.scaled_embedding:
            x = x * self.core.embed_tokens.embed_scale.to(x.dtype)
        return x

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x cos + rotate_half(x) sin; x: [..., heads, head_dim], cos and sin: [..., 1, head_dim]."""
        return torch.addcmul(x * cos, torch.roll(x, self.head_dim // 2, -1), sin)

    def _block(self, i: int, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """x: [..., d_model] -> the layer's output, same shape."""
        w = self.layers[i]
        qkv = F.linear(self._norm(x, w.norm_in), w.qkv, w.qkv_bias)
        heads = qkv.view(*qkv.shape[:-1], -1, self.head_dim)
        qk, v = torch.split(heads, [self.heads + self.kv_heads, self.kv_heads], dim=-2)
        if w.norm_qk is not None:
            qk = F.rms_norm(qk, (self.head_dim,), None, self.eps) * w.norm_qk
        q, k = torch.split(self._rotate(qk, cos, sin), [self.heads, self.kv_heads], dim=-2)
        attended = attend(i, q, k, v)
        attended = F.linear(attended, w.out, w.out_bias)
        if w.norm_attention_out is not None:
            attended = self._norm(attended, w.norm_attention_out)
        x = x + attended
        gate, up = F.linear(self._norm(x, w.norm_mlp), w.gate_up).chunk(2, dim=-1)
        out = F.linear(self._activate(gate) * up, w.down)
        if w.norm_mlp_out is not None:
            out = self._norm(out, w.norm_mlp_out)
        return x + out

    def _activate(self, gate: Tensor) -> Tensor:
        """The activation of gate [..., intermediate], a view of every other stretch of a tensor.

        Threads share a large tensor by number of elements, and where one's share ends inside a row
        its last elements take another code. Shares below GRAIN are not divided.
        """
        if self.device.type != "cpu" or gate.numel() <= GRAIN or torch.get_num_threads() == 1:
            activated: Tensor = self.activation(gate)
            return activated
        flat = gate.reshape(-1, gate.shape[-1])
        shares = torch.split(flat, max(1, GRAIN // gate.shape[-1]))
        return torch.cat([self.activation(share) for share in shares]).view(gate.shape)

    def _run(
        self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, sites: Sites, layers: int
    ) -> Tensor:
        for i in range(layers):
            x = self._block(i, x, cos, sin, attend)
            if i in sites:
                x = sites[i](x.reshape(-1, self.d_model)).view(x.shape)
        return x

    def _logits(self, x: Tensor) -> Tensor:
        logits = F.linear(self._norm(x, self.norm_final), self.head)
        if self.logit_cap is not None:
            logits = torch.tanh(logits / self.logit_cap) * self.logit_cap
        return logits

    # --- passes --------------------------------------------------------------------------------

    def allocate(self, slots: int, capacity: int, opening: Tensor | None = None) -> PagedCache:
        self._ensure(capacity)
        past: list[Stretch] = []
        if opening is not None:
            capacity -= opening.shape[1]
            self._sequence(opening, {}, self.n_layers, lambda _, k, v: past.append(Stretch(k, v)))
        pages = Pages(slots, capacity, PAGE, self.device)
        return PagedCache(
            pages,
            [
                (self._room(pages, self.head_dim, PAGE), self._room(pages, PAGE, self.head_dim))
                for _ in range(self.n_layers)
            ],
            past,
        )

    def _room(self, pages: Pages, *page: int) -> Tensor:
        shape = (pages.total, self.kv_heads, *page)
        if self.device.type != "cpu":
            return torch.zeros(shape, dtype=self.dtype, device=self.device)
        # numpy's zeros cost nothing until they are written, and high pages seldom are
        lazy = np.zeros(math.prod(shape) * self.dtype.itemsize, np.uint8)
        return torch.from_numpy(lazy).view(self.dtype).view(shape)

    def _ensure(self, length: int) -> None:
        if length > len(self.cos):
            self._tables(length)

    def move(self, cache: PagedCache, source: int, target: int) -> None:
        cache.pages.move(source, target)

    def step(
        self, cache: PagedCache, tokens: Tensor, lengths: NDArray[np.int64], sites: Sites
    ) -> Tensor:
        own = np.maximum(lengths - cache.opening, 0)
        self._make_room(cache, own)
        last = np.maximum(own - 1, 0)
        after = torch.from_numpy(last).to(self.device)
        positions = after + cache.opening
        place, view = cache.pages.places(last), cache.pages.view(len(tokens))
        masks = self._page_masks(after, view)

        def attend(i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = cache.layers[i]
            keys[place.page, :, :, place.offset] = k
            values[place.page, :, place.offset] = v
            window, shared = self.layers[i].window, None
            if cache.past:
                share = self.block.rows if self.block.rows > 1 else len(q)
                begun = cache.past[i]
                shared = begun.scores(q * self.scale, share, self.score_cap, positions, window)
            return self._attend_pages(q, keys, values, masks[window], view, shared)

        x = self._run(
            self._embed(tokens), self.cos[positions], self.sin[positions], attend, sites,
            self.n_layers,
        )  # fmt: skip
        return self._logits(x)

    def _make_room(self, cache: PagedCache, lengths: NDArray[np.int64]) -> None:
        cache.pages.resize(lengths)
        source, target = cache.pages.compact()
        if source:
            for k, v in cache.layers:
                k[target], v[target] = k[source], v[source]

    def _page_masks(self, positions: Tensor, view: View) -> dict[int | None, Tensor]:
        """[pages * kv_heads, 1, PAGE] additive, one per window length in use."""
        last = (positions.index_select(0, view.owner) - view.start)[:, None]
        past = self._offsets <= last
        zero = torch.zeros((), dtype=self.dtype, device=self.device)
        masks = {}
        for window in {layer.window for layer in self.layers}:
            seen = past if window is None else past & (self._offsets > last - window)
            mask = torch.where(seen, zero, -math.inf)
            masks[window] = mask.repeat_interleave(self.kv_heads, 0)[:, None]
        return masks

    def _attend_pages(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor,
        view: View,
        shared: Scores | None,
    ) -> Tensor:
        """Softmax attention of q [rows, heads, head_dim] over each row's own pages and what is shared.

        Each page is multiplied with its owner's queries; the softmax is put together from the
        pages' maxima and sums, in float32 and in the order of the sequence.
        """
        rows, pages = len(q), len(view.owner)
        queries = q.reshape(rows, -1).index_select(0, view.owner)
        queries = queries.view(pages * self.kv_heads, -1, self.head_dim)
        scores = self._scores(queries, keys[:pages].flatten(0, 1), mask).view(pages, self.heads, -1)
        highest = self._by_row(scores.amax(-1), view, rows).amax(1)
        # a row without a page has no maximum and no sum, and must not pass NaN on to SCRATCH
        highest = highest.clamp_(min=torch.finfo(torch.float32).min)
        if shared is not None:
            highest = torch.maximum(highest, shared.highest)
        weights = scores.sub_(highest.index_select(0, view.owner)[:, :, None]).exp_()
        total = self._total(weights.sum(-1), view)
        weights = weights.to(values.dtype).view(pages * self.kv_heads, -1, PAGE)
        parts = torch.bmm(weights, values[:pages].flatten(0, 1)).view(pages, -1)
        out = self._total(parts, view).view(rows, self.heads, -1)
        if shared is not None:
            more, weighed = shared.weighed(highest)
            total, out = total + more, out + weighed
        # 1 or more where a row has a key at all: its highest score counts 1
        return (out / total.clamp_(min=1)[:, :, None]).to(q.dtype).view(rows, -1)

    def _scores(self, queries: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """[pages * kv_heads, group, PAGE] float32, scaled, capped and masked."""
        if self.score_cap is None:
            return torch.baddbmm(mask, queries, keys, alpha=self.scale).float()
        scores = torch.bmm(queries, keys).float() * self.scale
        capped: Tensor = torch.tanh(scores / self.score_cap) * self.score_cap
        return capped + mask

    @staticmethod
    def _by_row(x: Tensor, view: View, rows: int) -> Tensor:
        """[pages, n] -> [rows, most pages of a row, n]"""
        return x.index_select(0, view.table).view(rows, -1, x.shape[-1])

    @staticmethod
    def _total(x: Tensor, view: View) -> Tensor:
        """[pages, n] -> [rows, n], summed over a row's pages one after another: the order, and so
        the rounding, does not depend on how many pages the longest row has."""
        return torch.embedding_bag(x, view.table, view.first)[0]

    def _weights(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Attention weights from scaled scores; softmax in float32 as in transformers."""
        if self.score_cap is not None:
            scores = torch.tanh(scores / self.score_cap) * self.score_cap
        return (scores + mask).softmax(-1, dtype=torch.float32).to(scores.dtype)

    def _sequence(
        self,
        ids: Tensor,
        sites: Sites,
        layers: int,
        keep: Callable[[int, Tensor, Tensor], None],
        past: Sequence[Stretch] = (),
    ) -> Tensor:
        """Whole sequences. ids: [rows, length], after `past` if there is one; `keep` gets each layer's
        k and v [rows, length, kv_heads, head_dim]. Returns [rows, length, d_model]."""
        start = past[0].length if past else 0
        whole = start + ids.shape[1]
        self._ensure(whole)
        places = self._places[:whole]
        at = places[start:, None]
        seen = places <= at
        masks = {
            window: seen if window is None else seen & (places > at - window)
            for window in {layer.window for layer in self.layers}
        }

        def attend(i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keep(i, k, v)
            if past:
                k, v = past[i].before(k, v)
            return self._attend_sequence(q, k, v, masks[self.layers[i].window])

        cos, sin = self.cos[start:whole], self.sin[start:whole]
        return self._run(self._embed(ids), cos, sin, attend, sites, layers)

    def _attend_sequence(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
        """q: [rows, length, heads, head_dim]; k, v: [rows, keys, ...]; seen: [length, keys] bool."""
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if self.score_cap is None:
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=seen, scale=self.scale, enable_gqa=self.heads != self.kv_heads
            )
        else:
            grouped = q.view(len(q), self.kv_heads, -1, *q.shape[2:]) * self.scale
            mask = torch.zeros_like(seen, dtype=q.dtype).masked_fill(~seen, -math.inf)
            weights = self._weights(grouped @ k.unsqueeze(2).transpose(-1, -2), mask)
            out = (weights @ v.unsqueeze(2)).flatten(1, 2)
        return out.transpose(1, 2).flatten(2)

    def prefill(
        self,
        cache: PagedCache,
        ids: Tensor,
        lengths: NDArray[np.int64],
        slots: NDArray[np.int64],
        sites: Sites,
    ) -> Tensor:
        held = cache.pages.held * PAGE
        held[slots] = lengths
        self._make_room(cache, held)
        pages = min(-(-ids.shape[1] // PAGE), cache.pages.table.shape[1])
        where = torch.from_numpy(cache.pages.table[slots, :pages].ravel()).to(self.device)

        def paged(new: Tensor) -> Tensor:
            whole = F.pad(new, (0, 0, 0, 0, 0, pages * PAGE - new.shape[1]))  # or cut
            return whole.view(-1, PAGE, self.kv_heads, self.head_dim)

        def keep(i: int, k: Tensor, v: Tensor) -> None:
            keys, values = cache.layers[i]
            keys.index_copy_(0, where, paged(k).permute(0, 2, 3, 1))
            values.index_copy_(0, where, paged(v).transpose(1, 2))

        x = self._sequence(ids, sites, self.n_layers, keep, cache.past)
        ends = torch.from_numpy(lengths - 1).to(self.device)
        last = x[torch.arange(len(ids), device=self.device), ends]
        return self._logits(exact.filled(last, self.block.rows))[: len(ids)]

    def forward(self, ids: Tensor, lengths: Tensor, sites: Sites) -> None:
        self._sequence(ids, sites, max(sites, default=-1) + 1, lambda i, k, v: None)
