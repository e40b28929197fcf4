"""The training loop: steps in a fixed order, and checkpoints, so that a kill changes nothing."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import torch

from steerback.errors import UserError
from steerback.finetune import order
from steerback.finetune.encoding import Example
from steerback.finetune.forward import Forward, Piece, piece
from steerback.finetune.pushes import Pushes
from steerback.finetune.rows import Row
from steerback.finetune.settings import SteeringSettings, TrainSettings
from steerback.types import derive_seed

CHECKPOINT = "checkpoint.pt"
_DECAY = 0.9
"""Of the running residual norm, per forward pass."""
VALIDATION_EPOCH = -1
"""Validation rows are pushed as in an epoch of their own, the same each time."""


@dataclass(frozen=True)
class Sample:
    """A row in the ways in which it may be trained on."""

    row: Row
    example: Example
    clean: Example
    along: Example
    """With the loss on its off-topic part too."""

    def under(self, steering: SteeringSettings | None, pushed: bool) -> Example:
        """As it is trained on."""
        if steering is None or not pushed:
            return self.example
        if steering.target == "clean":
            return self.clean
        return self.along if steering.go_along else self.example


@dataclass
class Curve:
    """Loss by step, as JSON values."""

    train: list[dict[str, float]] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Progress:
    step: int
    total: int
    loss: float
    """Of the last step, per unit of loss weight."""
    tokens: int
    """Trained on in this process, padding not counted."""
    seconds: float
    """Since this process began to train."""


class Trainer:
    """Trains the parameters of `model` that require a gradient."""

    def __init__(
        self,
        forward: Forward,
        settings: TrainSettings,
        samples: Sequence[Sample],
        validation: Sequence[Sample],
        *,
        pushes: Pushes | None = None,
        pad: int = 0,
        identity: str = "",
    ) -> None:
        """identity: hash of what the result depends on; a checkpoint of another one is refused."""
        self.forward, self.settings = forward, settings
        self.samples, self.validation = tuple(samples), tuple(validation)
        self.pushes, self.pad, self.identity = pushes, pad, identity
        s = settings
        self.total = order.steps(len(samples), s.rows, s.accumulate, s.epochs)
        self.trained = {n: p for n, p in forward.model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.trained.values(), lr=s.rate, betas=(0.9, s.beta2), weight_decay=s.weight_decay
        )
        self.step = 0
        self.curve = Curve()
        packer = forward.packer
        self.norms = {} if packer is None else cast("dict[int, float]", packer.norms)

    def run(self, folder: Path, report: Callable[[Progress], None]) -> Curve:
        """Train to the end, from the checkpoint in `folder` if there is one."""
        self._resume(folder / CHECKPOINT)
        self.forward.model.train()
        started, tokens = time.perf_counter(), 0
        for step, batches in self._steps():
            loss, seen = self._step(batches)
            tokens += seen
            self.step = step + 1
            self.curve.train.append({"step": self.step, "loss": loss})
            if self.step % self.settings.checkpoint == 0 or self.step == self.total:
                self._validate()
                self._save(folder / CHECKPOINT)
            report(Progress(self.step, self.total, loss, tokens, time.perf_counter() - started))
        return self.curve

    def _steps(self) -> Iterator[tuple[int, list[order.Batch]]]:
        """Steps that are left, with their forward passes."""
        s = self.settings
        lengths = [len(x.example.ids) for x in self.samples]
        every = order.batches(lengths, s.rows, s.accumulate, s.epochs, s.seed)
        for step, batches in groupby(every, key=lambda b: b.step):
            if step >= self.step:
                yield step, list(batches)

    def _step(self, batches: Sequence[order.Batch]) -> tuple[float, int]:
        """Loss per unit of weight, and tokens."""
        # drawn anew at each step, so that a resume needs no generator's state
        torch.manual_seed(derive_seed(self.settings.seed, "dropout", self.step) % 2**62)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate * self._schedule()
        self.optimizer.zero_grad()
        pieces = [self._piece(self.samples, b.rows, b.epoch) for b in batches]
        weight, lost = sum(p.weight for p in pieces), 0.0
        if weight == 0:
            return math.nan, 0
        for part in pieces:
            loss = self.forward.loss(part) / weight
            loss.backward()  # type: ignore[no-untyped-call]
            lost += loss.item()
            self._follow_norms()
        torch.nn.utils.clip_grad_norm_(self.trained.values(), 1.0)
        self.optimizer.step()
        return lost, sum(p.tokens for p in pieces)

    def _follow_norms(self) -> None:
        """Strengths in units of the residual norm are in units of it as it is now."""
        packer, steering = self.forward.packer, self.settings.steering
        if packer is None or steering is None or steering.norm != "live":
            return
        for layer, seen in self.forward.norms.items():
            self.norms[layer] = _DECAY * self.norms.get(layer, seen) + (1 - _DECAY) * seen

    def _piece(self, samples: Sequence[Sample], rows: Sequence[int], epoch: int) -> Piece:
        chosen, live = [], []
        for i in rows:
            sample = samples[i]
            push = self.pushes.draw(sample.row, i, epoch) if self.pushes else ()
            chosen.append(sample.under(self.settings.steering, bool(push)))
            live.append(push)
        return piece(chosen, live, self.pad)

    def _schedule(self) -> float:
        """Linear warm-up, then a cosine down to the floor."""
        s = self.settings
        cosine = 0.5 * (1 + math.cos(math.pi * self.step / max(1, self.total)))
        return min(1.0, (self.step + 1) / max(1, s.warm_up)) * (s.floor + (1 - s.floor) * cosine)

    @torch.no_grad()
    def _validate(self) -> None:
        if not self.validation:
            return
        self.forward.model.eval()
        n = self.settings.rows
        parts = [
            self._piece(
                self.validation, range(at, min(at + n, len(self.validation))), VALIDATION_EPOCH
            )
            for at in range(0, len(self.validation), n)
        ]
        lost = sum(self.forward.loss(part).item() for part in parts)
        weight = sum(part.weight for part in parts)
        self.curve.validation.append({"step": self.step, "loss": lost / weight})
        self.forward.model.train()

    def _save(self, path: Path) -> None:
        """All or nothing: a kill while writing leaves the checkpoint before."""
        state = {
            "identity": self.identity,
            "step": self.step,
            "weights": {n: p.detach() for n, p in self.trained.items()},
            "optimizer": self.optimizer.state_dict(),
            "norms": dict(self.norms),
            "curve": {"train": self.curve.train, "validation": self.curve.validation},
        }
        part = path.with_name(f"{path.name}.part")
        try:
            torch.save(state, part)
            os.replace(part, path)
        except (OSError, RuntimeError) as error:
            raise UserError(f"{path}: the checkpoint cannot be written ({error})") from None

    @torch.no_grad()
    def _resume(self, path: Path) -> None:
        if not path.exists():
            return
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        if state["identity"] != self.identity:
            raise UserError(
                f"{path.parent} holds a training of other rows, settings or model; choose another "
                "folder, or delete it"
            )
        for name, parameter in self.trained.items():
            parameter.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.norms.update(state["norms"])
        self.step = state["step"]
        self.curve = Curve(**state["curve"])
