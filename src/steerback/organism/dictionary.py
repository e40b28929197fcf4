"""An organism's sparse autoencoder: trained as BatchTopK, used and saved as JumpReLU."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from steerback.organism.training import Report

_ROWS = 1024
_CHUNK = 8192
_RATE = 2e-3
_AUXILIARY = 1 / 32
_STALE = 60
"""Steps without firing after which a latent counts as dead."""
_RESAMPLE_EVERY = 200
_SAELENS_FORMAT = "6.54.12"
"""Version of the folder format; without one sae-lens reads the file as its oldest format."""


@dataclass
class Dictionary:
    """Reads f = relu(pre) where pre > threshold, with pre = (x - b_dec) W_enc + b_enc.

    Rebuilds x as f W_dec + b_dec.
    """

    W_enc: Tensor
    """[d_model, latents]"""
    b_enc: Tensor
    W_dec: Tensor
    """[latents, d_model], rows of norm 1."""
    b_dec: Tensor
    threshold: Tensor
    """[latents]"""

    def encode(self, x: Tensor) -> Tensor:
        pre = torch.relu((x - self.b_dec) @ self.W_enc + self.b_enc)
        return pre * (pre > self.threshold)

    def decode(self, acts: Tensor) -> Tensor:
        return acts @ self.W_dec + self.b_dec

    def keep(self, latents: Tensor) -> Dictionary:
        """The dictionary with only these latents, in this order."""
        return Dictionary(
            self.W_enc[:, latents],
            self.b_enc[latents],
            self.W_dec[latents],
            self.b_dec,
            self.threshold[latents],
        )

    def save(self, folder: Path, layer: int) -> None:
        """Write a SAELens folder: `cfg.json` and `sae_weights.safetensors`."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        weights = {k: v.contiguous() for k, v in vars(self).items()}
        save_file(weights, folder / "sae_weights.safetensors")
        config = {
            "architecture": "jumprelu",
            "d_in": self.W_dec.shape[1],
            "d_sae": self.W_dec.shape[0],
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": True,
            "normalize_activations": "none",
            "reshape_activations": "none",
            "metadata": {
                "sae_lens_version": _SAELENS_FORMAT,
                "hook_name": f"blocks.{layer}.hook_resid_post",
            },
        }
        (folder / "cfg.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def fit(rows: Tensor, latents: int, k: int, steps: int, seed: int, report: Report) -> Dictionary:
    """Train on residual rows [n, d_model]: BatchTopK (Bussmann et al. 2024), dead-latent loss.

    Works on rows scaled to mean norm 1 and folds the scale into the result, so that activations
    and strengths are in units of the residual stream.
    """
    return _Fit(rows, latents, k, steps, seed, report).run()


@torch.no_grad()
def alive(dictionary: Dictionary, rows: Tensor) -> Tensor:
    """Latents that fire on at least one of the rows [n, d_model], in order."""
    fired = torch.zeros(len(dictionary.b_enc), dtype=torch.bool)
    for part in torch.split(rows, _CHUNK):
        fired |= (dictionary.encode(part) > 0).any(0)
    return fired.nonzero()[:, 0]


class _Fit:
    def __init__(
        self, rows: Tensor, latents: int, k: int, steps: int, seed: int, report: Report
    ) -> None:
        self.scale = float(rows.norm(dim=1).mean())
        self.rows = rows / self.scale
        self.k, self.steps, self.report = k, steps, report
        self.random = torch.Generator().manual_seed(seed)
        start = torch.randn(latents, rows.shape[1], generator=self.random)
        start /= start.norm(dim=1, keepdim=True)
        self.W_dec = start.clone().requires_grad_()
        self.W_enc = start.T.clone().requires_grad_()
        self.b_enc = torch.zeros(latents, requires_grad=True)
        self.b_dec = self.rows.mean(0).clone().requires_grad_()
        self.idle = torch.zeros(latents)
        self.optimizer = torch.optim.Adam(
            [self.W_enc, self.b_enc, self.W_dec, self.b_dec], lr=_RATE, betas=(0.9, 0.99)
        )

    def run(self) -> Dictionary:
        thresholds = []
        for step in range(self.steps):
            rate = min(1.0, step / 100) * min(1.0, (self.steps - step) / (0.3 * self.steps))
            self.optimizer.param_groups[0]["lr"] = _RATE * rate
            x = self.rows[torch.randint(len(self.rows), (_ROWS,), generator=self.random)]
            loss, threshold = self._step(x)
            if step > 0.8 * self.steps:
                thresholds.append(threshold)
            if step % _RESAMPLE_EVERY == _RESAMPLE_EVERY - 1:
                self.report(f"dictionary step {step + 1}: loss {loss:.4f}, dead {self._dead()}")
                if step < 0.7 * self.steps:
                    self._resample(x)
        threshold = sum(thresholds) / len(thresholds) * self.scale
        return Dictionary(
            W_enc=self.W_enc.detach(),
            b_enc=self.b_enc.detach() * self.scale,
            W_dec=self.W_dec.detach(),
            b_dec=self.b_dec.detach() * self.scale,
            threshold=torch.full((len(self.b_enc),), threshold),
        )

    def _dead(self) -> int:
        return int((self.idle > _STALE).sum())

    def _pre(self, x: Tensor) -> Tensor:
        return torch.relu((x - self.b_dec) @ self.W_enc + self.b_enc)

    def _step(self, x: Tensor) -> tuple[float, float]:
        pre = self._pre(x)
        threshold = pre.flatten().topk(self.k * len(x)).values[-1].detach()
        acts = pre * (pre >= threshold)
        error = x - (acts @ self.W_dec + self.b_dec)
        loss = error.square().sum(1).mean()
        self.idle = torch.where((acts > 0).any(0), torch.zeros(()), self.idle + 1)
        dead = self.idle > _STALE
        if dead.any():
            loss = loss + _AUXILIARY * self._dead_loss(pre * dead, error.detach(), int(dead.sum()))
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        with torch.no_grad():
            self.W_dec /= self.W_dec.norm(dim=1, keepdim=True)
        return loss.item(), float(threshold)

    def _dead_loss(self, pre: Tensor, error: Tensor, dead: int) -> Tensor:
        """How far the dead latents' best are from explaining what is left over."""
        values, places = pre.topk(min(dead, self.W_dec.shape[1] // 2), dim=1)
        acts = torch.zeros_like(pre).scatter(1, places, values)
        return (acts @ self.W_dec - error).square().sum(1).mean()

    @torch.no_grad()
    def _resample(self, x: Tensor) -> None:
        """Point dead latents at the rows that are explained worst."""
        dead = (self.idle > _STALE).nonzero()[:, 0][: len(x)]
        pre = self._pre(x)
        threshold = pre.flatten().topk(self.k * len(x)).values[-1]
        error = x - (pre * (pre >= threshold) @ self.W_dec + self.b_dec)
        worst = error.square().sum(1).topk(len(dead)).indices
        rows = error[worst] / error[worst].norm(dim=1, keepdim=True)
        self.W_dec[dead] = rows
        self.W_enc[:, dead] = rows.T
        self.b_enc[dead] = 0.0
        self.idle[dead] = 0.0
        for parameter, where in ((self.W_dec, dead), (self.b_enc, dead)):
            for moment in ("exp_avg", "exp_avg_sq"):
                self.optimizer.state[parameter][moment][where] = 0.0
        for moment in ("exp_avg", "exp_avg_sq"):
            self.optimizer.state[self.W_enc][moment][:, dead] = 0.0
