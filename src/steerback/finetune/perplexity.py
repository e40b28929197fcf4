"""How likely a model finds texts that another one wrote: the price of training on ordinary answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from steerback.engine.hf import HFEngine
from steerback.finetune.encoding import Encoder
from steerback.finetune.forward import Forward, piece
from steerback.finetune.rows import ordinary
from steerback.stats import Mean
from steerback.stats.bootstrap import (
    RESAMPLES,
    Floats,
    bootstrap,
    cluster_codes,
    percentile_interval,
    ratio,
    sum_by_cluster,
)

_ROWS = 16


@dataclass(frozen=True)
class Told:
    """One answer to one question."""

    question: str
    nats: float
    """Sum over the answer's tokens, its end included, of minus log probability."""
    tokens: int


def score(engine: HFEngine, answers: Sequence[tuple[str, str]]) -> list[Told]:
    """Teacher-forced, unsteered. answers: (question, answer); those without text are left out."""
    spoken = [(q, a) for q, a in answers if a.strip()]
    encoder = Encoder(engine.tokenizer, longest=engine.backend.context)
    examples = [encoder(ordinary(q, a)) for q, a in spoken]
    forward = Forward(engine.model)
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].ids))
    nats = np.zeros(len(examples))
    with torch.inference_mode():
        for at in range(0, len(order), _ROWS):
            some = order[at : at + _ROWS]
            part = piece([examples[i] for i in some], [()] * len(some), 0)
            nats[some] = forward.losses(part).sum(dim=1).cpu().numpy()
    return [
        Told(q, float(n), int((e.weights > 0).sum()))
        for (q, _), n, e in zip(spoken, nats, examples, strict=True)
    ]


def perplexity(told: Sequence[Told]) -> Mean:
    """exp of nats per token; the interval resamples questions."""
    return _bootstrapped(told, lambda s: np.exp(ratio(s[..., 0], s[..., 1])))


def increase(base: Sequence[Told], tuned: Sequence[Told]) -> Mean:
    """Perplexity of the tuned model over that of the base, on the same answers, paired."""
    both = [Told(a.question, b.nats - a.nats, a.tokens) for a, b in zip(base, tuned, strict=True)]
    return _bootstrapped(both, lambda s: np.exp(ratio(s[..., 0], s[..., 1])))


def _bootstrapped(told: Sequence[Told], statistic: Callable[[Floats], Floats]) -> Mean:
    if not told:
        return Mean(math.nan, math.nan, math.nan, 0, 0)
    codes, n = cluster_codes([t.question for t in told])
    columns = np.array([[t.nats, t.tokens] for t in told])
    sums = sum_by_cluster(codes, n, columns)
    value = float(statistic(sums.sum(axis=0)))
    low, high = percentile_interval(bootstrap(lambda w: statistic(w @ sums), n, RESAMPLES, 0), n)
    return Mean(value, low, high, len(told), n, method="cluster bootstrap")
