"""Sampling against the Hugging Face processors and against the distribution it inverts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from steerback.engine.sampling import (
    RowSettings,
    draw,
    filter_top,
    inverse_cdf,
    penalise,
    uniforms,
)
from steerback.types import Sampling

SETTINGS = [
    Sampling(),
    Sampling(temperature=1.0, top_k=1),
    Sampling(temperature=0.3, top_k=7, top_p=0.5),
    Sampling(temperature=2.0, top_p=0.9, repetition_penalty=1.5),
    Sampling(temperature=1.0, top_p=0.01),
    Sampling(temperature=1.0, top_k=10**6, repetition_penalty=0.8),
    Sampling(temperature=1.0, top_p=1e-9),
]


@pytest.mark.parametrize("vocab", [3, 17, 65, 1001])
def test_scores_equal_the_processors(vocab: int) -> None:
    torch.manual_seed(vocab)
    rows = len(SETTINGS)
    logits = 3 * torch.randn(rows, vocab)
    seen = torch.randint(0, vocab, (rows, 9))
    settings = RowSettings.pack(SETTINGS, vocab, torch.device("cpu"))
    ours = filter_top(penalise(logits, seen, settings.penalty) / settings.temperature, settings)
    for row, s in enumerate(SETTINGS):
        ids, scores = seen[row : row + 1], logits[row : row + 1]
        scores = RepetitionPenaltyLogitsProcessor(s.repetition_penalty)(ids, scores)
        scores = TemperatureLogitsWarper(float(s.temperature))(ids, scores)
        if s.top_k:
            scores = TopKLogitsWarper(s.top_k)(ids, scores)
        if s.top_p < 1:
            scores = TopPLogitsWarper(s.top_p)(ids, scores)
        torch.testing.assert_close(ours[row : row + 1], scores)


def test_draws_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.0, 0.5, 0.1, 0.0, 0.25, 0.15, 0.0])
    n = 20_000
    tokens = inverse_cdf(probabilities.expand(n, -1), uniforms(3, n))
    counts = np.bincount(tokens.numpy(), minlength=7)
    live = probabilities.numpy() > 0
    assert counts[~live].sum() == 0
    assert stats.chisquare(counts[live], n * probabilities.numpy()[live]).pvalue > 1e-3


@pytest.mark.parametrize("u", [0.0, 1 - 2.0**-40])
def test_the_ends_of_the_interval_never_hit_an_impossible_token(u: float) -> None:
    probabilities = torch.softmax(torch.randn(400, 301), -1)
    probabilities[:, :40] = 0
    probabilities[:, -40:] = 0
    tokens = inverse_cdf(probabilities, torch.full((400,), u, dtype=torch.float64))
    assert (probabilities[torch.arange(400), tokens] > 0).all()


def test_uniforms_are_a_stream_of_the_seed() -> None:
    assert torch.equal(uniforms(5, 10), uniforms(5, 30)[:10])
    assert not torch.equal(uniforms(5, 10), uniforms(6, 10))
    big = uniforms(2**63 - 1, 20_000).numpy()
    assert big.min() >= 0
    assert big.max() < 1
    assert stats.kstest(big, "uniform").pvalue > 1e-3


def test_greedy_rows_take_the_best_penalised_token() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.9], [1.0, 3.0, 2.9]])
    seen = torch.tensor([[1], [0]])
    rows = [Sampling(temperature=0, repetition_penalty=1.2)] * 2
    settings = RowSettings.pack(rows, 3, torch.device("cpu"))
    u = torch.tensor([0.0, 0.0], dtype=torch.float64)
    assert draw(logits, seen, settings, u, filters=False, greedy=True).tolist() == [2, 1]
