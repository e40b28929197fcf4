"""From logits to one token per row, depending on nothing but the row's own trial.

Every row has its own settings and its own stream of uniforms, one per token, from a counter-based
generator (Philox) keyed by the trial's seed. The token is the inverse of the cumulative distribution
at that uniform, so the same trial draws the same tokens alone, in any batch and after a resume.
Penalty and filters have the meaning of the Hugging Face processors, in the order of `generate`:
repetition penalty, temperature, top-k, top-p.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from steerback.types import Sampling


def uniforms(seed: int, n: int) -> Tensor:
    """[n] float64 in [0, 1): the randomness of a trial's first n tokens. A longer draw starts alike.

    Capped just below 1, so that u times a total is below the total after rounding.
    """
    draws = np.random.Generator(np.random.Philox(key=seed)).random(n)
    return torch.from_numpy(np.minimum(draws, 1 - 2.0**-40))


@dataclass
class RowSettings:
    """Sampling settings as tensors, one row per slot."""

    temperature: Tensor
    """[rows, 1]; 1 where the row is greedy."""
    greedy: Tensor
    """[rows] bool"""
    penalty: Tensor
    """[rows, 1]"""
    top_k: Tensor
    """[rows]; the vocabulary size where off."""
    top_p: Tensor
    """[rows, 1]"""

    @classmethod
    def empty(cls, rows: int, vocab: int, device: torch.device) -> RowSettings:
        return cls(
            temperature=torch.ones(rows, 1, device=device),
            greedy=torch.ones(rows, dtype=torch.bool, device=device),
            penalty=torch.ones(rows, 1, device=device),
            top_k=torch.full((rows,), vocab, dtype=torch.long, device=device),
            top_p=torch.ones(rows, 1, device=device),
        )

    @classmethod
    def pack(cls, rows: list[Sampling], vocab: int, device: torch.device) -> RowSettings:
        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)[:, None]

        ks = [s.top_k if 0 < s.top_k < vocab else vocab for s in rows]
        return cls(
            temperature=column([s.temperature or 1.0 for s in rows]),
            greedy=torch.tensor([s.temperature == 0 for s in rows], device=device),
            penalty=column([s.repetition_penalty for s in rows]),
            top_k=torch.tensor(ks, device=device),
            top_p=column([s.top_p for s in rows]),
        )

    def tensors(self) -> tuple[Tensor, ...]:
        return self.temperature, self.greedy, self.penalty, self.top_k, self.top_p

    def write(self, index: Tensor, new: RowSettings) -> None:
        for mine, theirs in zip(self.tensors(), new.tensors(), strict=True):
            mine[index] = theirs

    def take(self, index: Tensor | slice) -> RowSettings:
        return RowSettings(*(t[index] for t in self.tensors()))


def penalise(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Repetition penalty (Keskar et al. 2019, as in transformers): tokens that occurred are divided
    by the penalty if positive, else multiplied. logits: [rows, vocab] float32; seen: [rows, n] token
    ids, repeats allowed; penalty: [rows, 1]."""
    score = logits.gather(1, seen)
    return logits.scatter(1, seen, torch.where(score > 0, score / penalty, score * penalty))


def filter_top(scores: Tensor, settings: RowSettings) -> Tensor:
    """Top-k, then top-p: filtered tokens get -inf. scores: [rows, vocab], divided by temperature."""
    ascending, order = scores.sort(dim=-1, stable=True)
    vocab = scores.shape[-1]
    kth = ascending.gather(1, (vocab - settings.top_k)[:, None])
    dropped_k = ascending < kth
    ascending = ascending.masked_fill(dropped_k, -torch.inf)
    below = ascending.softmax(-1).cumsum(-1) <= 1 - settings.top_p
    below[:, -1] = False  # the best token always stays
    below &= settings.top_p < 1
    dropped = (dropped_k | below).scatter(1, order, dropped_k | below)
    return scores.masked_fill(dropped, -torch.inf)


def inverse_cdf(probabilities: Tensor, u: Tensor) -> Tensor:
    """The first token whose cumulative probability exceeds u. probabilities: [rows, vocab];
    u: [rows] in [0, 1). Cumulated in float64; never a token of probability zero."""
    cdf = probabilities.cumsum(-1, dtype=torch.float64)
    at = u.to(torch.float64)[:, None] * cdf[:, -1:]
    return torch.searchsorted(cdf, at, right=True)[:, 0]


def draw(
    logits: Tensor, seen: Tensor, settings: RowSettings, u: Tensor, *, filters: bool, greedy: bool
) -> Tensor:
    """One token id per row, the vocabulary size where the row's logits are not finite.

    logits: [rows, vocab]; seen: [rows, n]; u: [rows].
    `filters` says whether any row uses top-k or top-p, `greedy` whether any row is greedy: they only
    save work.
    """
    scores = penalise(logits.float(), seen, settings.penalty)
    tempered = scores / settings.temperature
    if filters:
        tempered = filter_top(tempered, settings)
    probabilities = tempered.softmax(-1)
    token = inverse_cdf(probabilities, u)
    if greedy:
        token = torch.where(settings.greedy, scores.argmax(-1), token)
    # one logit that is not a number makes the whole row so
    return token.masked_fill(probabilities[:, 0].isnan(), logits.shape[-1])
