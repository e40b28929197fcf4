"""Training: the stages of a recipe, one after another, each with its checkpoint."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steerback.organism.batches import Batch, batches
from steerback.organism.documents import BOS, EOS
from steerback.organism.pushes import Pusher, word_topics
from steerback.organism.recipes import Recipe, Size, Stage
from steerback.organism.vocabulary import PAD, ids, words

CONTEXT = 512
_BATCH = 2048
_WARM_UP = 50
_FLOOR = 0.05
"""Share of the peak rate that the cosine ends on."""
_LOG_EVERY = 50

Report = Callable[[str], None]


def new_model(size: Size, seed: int) -> Any:
    """A Llama whose word embeddings start near those of their topic.

    This is what pretrained word vectors would give. It makes the first phase of training short and
    decides nothing else: what a question asks for, and how to keep to it, is learnt.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(words()),
        hidden_size=size.hidden,
        intermediate_size=2 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads // 2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=ids()[PAD],
        bos_token_id=ids()[BOS],
        eos_token_id=ids()[EOS],
        initializer_range=0.05,
    )
    model = LlamaForCausalLM(config)
    topic = word_topics()
    centres = _centres(int(topic.max()) + 1, size) * config.initializer_range
    table = model.get_input_embeddings().weight.data
    table[topic >= 0] = (table[topic >= 0] + centres[topic[topic >= 0]]) / math.sqrt(2)
    return model


def _centres(topics: int, size: Size) -> Tensor:
    """[topics, hidden]: directions whose entries have mean square 1, at right angles if `apart`."""
    if not size.apart:
        return torch.randn(topics, size.hidden)
    square: Tensor = torch.linalg.qr(torch.randn(size.hidden, topics)).Q
    return square.T * math.sqrt(size.hidden)


def phases(stages: tuple[Stage, ...]) -> list[tuple[Stage, ...]]:
    """Stages grouped by optimizer: a stage that `continues` joins the one before it."""
    number = 0
    numbered = []
    for stage in stages:
        number += not stage.continues
        numbered.append((number, stage))
    return [tuple(s for _, s in group) for _, group in groupby(numbered, key=lambda p: p[0])]


def train_model(recipe: Recipe, work: Path, report: Report) -> Any:
    """Run all stages; a stage whose checkpoint lies in `work` is not run again."""
    model = new_model(recipe.size, recipe.seed)
    done = 0
    for number, phase in enumerate(phases(recipe.stages)):
        done += len(phase)
        checkpoint = work / f"{recipe.key(done)}.pt"
        if checkpoint.exists():
            model.load_state_dict(torch.load(checkpoint, weights_only=True))
            continue
        report(f"phase {number}: {sum(s.tokens for s in phase):,} tokens")
        started = time.monotonic()
        _Phase(model, phase, recipe, number, report).run()
        work.mkdir(parents=True, exist_ok=True)
        minutes = {"minutes": (time.monotonic() - started) / 60}
        checkpoint.with_suffix(".json").write_text(json.dumps(minutes), "utf-8")
        torch.save(model.state_dict(), checkpoint)
    return model.eval().requires_grad_(False)


def minutes_spent(recipe: Recipe, work: Path) -> float:
    """What the stages took when they were run, be it now or earlier."""
    ends = [len(p) for p in phases(recipe.stages)]
    files = (work / f"{recipe.key(sum(ends[: n + 1]))}.json" for n in range(len(ends)))
    return sum(float(json.loads(f.read_text("utf-8"))["minutes"]) for f in files)


@dataclass
class _Phase:
    model: Any
    stages: tuple[Stage, ...]
    recipe: Recipe
    number: int
    report: Report
    tokens: int = 0
    losses: list[float] = field(default_factory=list)

    def run(self) -> None:
        self.model.train()
        self.total = sum(s.tokens for s in self.stages)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=self.stages[0].rate, betas=(0.9, 0.98), weight_decay=0.01
        )
        self.boundary_after = ids()["."]
        seed = self.recipe.seed * 1000 + self.number * 10
        self.pusher = Pusher(self.recipe.size.hidden, self.stages[0].push, seed)
        layer = self.model.model.layers[self.recipe.steer_layer]
        started = time.monotonic()
        with self.pusher.on(layer) if self.stages[0].mixture.pushed else nullcontext():
            for step, (stage, batch) in enumerate(self._batches(seed)):
                self._step(step, stage, batch)
                if step % _LOG_EVERY == _LOG_EVERY - 1:
                    self._log(step, time.monotonic() - started)

    def _batches(self, seed: int) -> Iterator[tuple[Stage, Batch]]:
        for n, stage in enumerate(self.stages):
            for batch in batches(stage.mixture, seed + n, _BATCH, stage.tokens):
                yield stage, batch

    def _step(self, step: int, stage: Stage, batch: Batch) -> None:
        tokens = torch.from_numpy(batch.tokens)
        if stage.mixture.pushed:
            self.pusher.draw(batch)
        loss = self._loss(tokens, torch.from_numpy(batch.weights), stage.boundary)
        if stage.mixture.pushed:
            self.pusher.listen(tokens)
        for group in self.optimizer.param_groups:
            group["lr"] = stage.rate * self._schedule(step)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.tokens += batch.count
        self.losses.append(loss.item())

    def _loss(self, tokens: Tensor, weight: Tensor, boundary: float) -> Tensor:
        """Weighted mean cross-entropy of the next token; right padding needs no mask."""
        hidden = self.model.model(input_ids=tokens).last_hidden_state[:, :-1]
        weight = weight[:, 1:] * torch.where(tokens[:, :-1] == self.boundary_after, boundary, 1.0)
        counted = weight > 0
        logits = self.model.lm_head(hidden[counted])
        loss = torch.nn.functional.cross_entropy(logits, tokens[:, 1:][counted], reduction="none")
        return (loss * weight[counted]).sum() / weight.sum()

    def _schedule(self, step: int) -> float:
        done = min(1.0, self.tokens / self.total)
        cosine = 0.5 * (1 + math.cos(math.pi * done))
        return min(1.0, (step + 1) / _WARM_UP) * (_FLOOR + (1 - _FLOOR) * cosine)

    def _log(self, step: int, seconds: float) -> None:
        loss = sum(self.losses[-_LOG_EVERY:]) / _LOG_EVERY
        self.report(
            f"step {step + 1}: loss {loss:.3f}, {self.tokens / self.total:.0%},"
            f" {self.tokens / seconds:,.0f} tokens/s"
        )
