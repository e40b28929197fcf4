"""Attention of all rows over one stretch of keys that they share: the opening of their prompts.

Rows are taken in shares of a fixed number, so that a product's shape, and with it a row's bits,
do not depend on how many rows there are. What is large stays in shares: [shares, kv_heads, rows of a
share * group, length].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Stretch:
    """Keys and values of one layer, [1, length, kv_heads, head_dim]."""

    keys: Tensor
    values: Tensor

    @property
    def length(self) -> int:
        return self.keys.shape[1]

    def before(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """These of [rows, n, kv_heads, head_dim], with the stretch in front of each row."""
        return _after(self.keys, keys), _after(self.values, values)

    def scores(
        self, q: Tensor, share: int, cap: float | None, positions: Tensor, window: int | None
    ) -> Scores:
        """q: [rows, heads, head_dim], scaled; rows are a multiple of `share`. positions: [rows], of the
        query; window: tokens that it looks back, itself included."""
        at = _Shares(share, len(q), q.shape[1], self.keys.shape[2])
        scores = at.product(at.split(q), self.keys[0].permute(1, 2, 0)).float()
        if cap is not None:
            scores = torch.tanh(scores / cap) * cap
        if window is not None:
            places = torch.arange(self.length, device=q.device)
            out_of_sight = (places <= positions[:, None] - window)[:, None]
            scores.masked_fill_(at.split(out_of_sight.expand(-1, q.shape[1], -1)), -math.inf)
        return Scores(scores, self.values[0].transpose(0, 1), at)


@dataclass(frozen=True)
class Scores:
    """How much each row attends to each token of the stretch, float32, before the softmax."""

    of: Tensor
    values: Tensor
    """[kv_heads, length, head_dim]"""
    at: _Shares

    @property
    def highest(self) -> Tensor:
        """[rows, heads]"""
        return self.at.joined(self.of.amax(-1, keepdim=True))[..., 0]

    def weighed(self, highest: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of exp(score - highest), [rows, heads], and the values weighed with it, [rows, heads,
        head_dim]. Used once: the scores are overwritten."""
        weights = self.of.sub_(self.at.split(highest[..., None])).exp_()
        total = self.at.joined(weights.sum(-1, keepdim=True))[..., 0]
        return total, self.at.joined(self.at.product(weights.to(self.values.dtype), self.values))


@dataclass(frozen=True)
class _Shares:
    size: int
    rows: int
    heads: int
    kv_heads: int

    def split(self, x: Tensor) -> Tensor:
        """[rows, heads, n] -> [shares, kv_heads, size * group, n]"""
        parts = x.reshape(self.rows // self.size, self.size, self.kv_heads, -1, x.shape[2])
        return parts.transpose(1, 2).flatten(2, 3)

    def joined(self, x: Tensor) -> Tensor:
        """The inverse of `split`."""
        parts = x.view(len(x), self.kv_heads, self.size, -1, x.shape[3])
        return parts.transpose(1, 2).reshape(self.rows, self.heads, -1)

    def product(self, x: Tensor, y: Tensor) -> Tensor:
        """[shares, kv_heads, r, n] @ [kv_heads, n, m], a share at a time."""
        out = x.new_empty(*x.shape[:3], y.shape[2])
        for share, into in zip(x, out, strict=True):
            torch.bmm(share, y, out=into)
        return out


def _after(past: Tensor, new: Tensor) -> Tensor:
    return torch.cat([past.expand(len(new), *past.shape[1:]), new], 1)
