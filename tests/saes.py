"""Random SAEs in the field's orientation, and the slow way to encode, edit and decode with them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

D, N, K = 12, 40, 5
SIZES = (1, 3, 17, 65)


@dataclass
class Naive:
    """Encode everything, edit, decode, add the error back: the definition, term by term."""

    kind: str
    seed: int = 0
    subtract: bool = True
    norm: str | None = None
    rescale: bool = False
    scale: float = 1.0
    weights: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        gen = torch.Generator().manual_seed(self.seed)
        self.weights = {
            "W_enc": torch.randn(D, N, generator=gen) / D**0.5,
            "W_dec": torch.randn(N, D, generator=gen),
            "b_enc": torch.randn(N, generator=gen) / 3,
            "b_dec": torch.randn(D, generator=gen) / 3,
            "threshold": torch.rand(N, generator=gen) - 0.2,
            "b_gate": torch.randn(N, generator=gen) / 3,
            "b_mag": torch.randn(N, generator=gen) / 3,
            "r_mag": torch.randn(N, generator=gen) / 3,
        }

    def stored(self) -> dict[str, Tensor]:
        names = ["W_enc", "W_dec", "b_dec"]
        names += ["b_gate", "b_mag", "r_mag"] if self.kind == "gated" else ["b_enc"]
        names += ["threshold"] if self.kind == "jumprelu" else []
        return {name: self.weights[name] for name in names}

    def _in(self, h: Tensor) -> tuple[Tensor, Tensor | float, Tensor | float]:
        if self.norm == "constant_norm_rescale":
            factor = D**0.5 / h.norm(dim=-1, keepdim=True)
            return h * factor, 1 / factor, 0.0
        if self.norm == "layer_norm":
            mean = h.mean(-1, keepdim=True)
            std = (h - mean).std(-1, keepdim=True)
            return (h - mean) / (std + 1e-5), std, mean
        return h * self.scale, 1 / self.scale, 0.0

    def encode(self, h: Tensor) -> Tensor:
        w = self.weights
        x = self._in(h)[0]
        if self.subtract:
            x = x - w["b_dec"]
        if self.kind == "gated":
            gate = x @ w["W_enc"] + w["b_gate"]
            size = torch.relu(x @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"])
            return size * (gate > 0)
        pre = x @ w["W_enc"] + w["b_enc"]
        if self.rescale:
            pre = pre * w["W_dec"].norm(dim=-1)
        return self._activate(pre)

    def _activate(self, pre: Tensor) -> Tensor:
        if self.kind == "relu":
            return torch.relu(pre)
        if self.kind == "jumprelu":
            return torch.relu(pre) * (pre > self.weights["threshold"])
        if self.kind == "groupmax":
            acts = torch.relu(pre).reshape(-1, K, N // K)
            return (acts * (acts == acts.amax(-1, keepdim=True))).reshape(-1, N)
        order = pre.abs() if self.kind == "abstopk" else pre
        kth = order.sort(descending=True).values[:, K - 1 : K]
        kept = torch.where(order >= kth, pre, torch.zeros(()))
        return kept if self.kind == "abstopk" else torch.relu(kept)

    def decode(self, acts: Tensor, h: Tensor) -> Tensor:
        if self.rescale:
            acts = acts / self.weights["W_dec"].norm(dim=-1)
        _, scale, shift = self._in(h)
        return (acts @ self.weights["W_dec"] + self.weights["b_dec"]) * scale + shift

    def edit(self, h: Tensor, change: Tensor) -> Tensor:
        """change [rows, N] is added to the latents; the reconstruction's error stays."""
        acts = self.encode(h)
        return self.decode(acts + change, h) + (h - self.decode(acts, h))


def stream(rows: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(seed)) * 1.7 + 0.3


def changes(rows: int, latents: list[int], seed: int = 2) -> Tensor:
    gen = torch.Generator().manual_seed(seed)
    out = torch.zeros(rows, N)
    out[:, latents] = torch.randn(rows, len(latents), generator=gen) * 3
    return out
