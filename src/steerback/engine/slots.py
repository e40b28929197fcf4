"""The table of slots: which trial sits where, and the per-row tensors of a decode step.

Buffers are static: a trial that enters writes its row, nothing is reallocated, and a decode step
sees the same shapes and addresses each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steerback.engine.sampling import RowSettings, uniforms
from steerback.types import Trial


@dataclass
class Job:
    """A trial on its way through the engine."""

    trial: Trial
    order: int
    """Place in the caller's list."""
    prompt_ids: list[int]
    """Prompt and prefill."""
    prefill: int
    """Tokens at the end of `prompt_ids` that belong to the response."""

    @property
    def room(self) -> int:
        """Cache places the trial may need."""
        return len(self.prompt_ids) + self.trial.sampling.max_new_tokens

    def begins(self, opening: Sequence[int]) -> bool:
        """Whether the prompt begins with these tokens and goes on, with no intervention on them."""
        n = len(opening)
        alike = 0 < n < len(self.prompt_ids) - self.prefill and self.prompt_ids[:n] == opening
        return alike and all(i.start is not None for i in self.trial.interventions)


class Rows(NamedTuple):
    """Some slots, in the three forms that indexing wants them in."""

    slots: Tensor
    """[n]"""
    pick: Tensor | slice
    """For tensors: a slice (views, no copies) where the slots are the first ones."""
    which: NDArray[np.int64] | slice
    """For arrays."""


class Table:
    """`slots` rows of state; rows [0, width) take part in a step."""

    def __init__(self, slots: int, capacity: int, longest: int, vocab: int, device: torch.device):
        self.jobs: list[Job | None] = [None] * slots
        self.seated = np.zeros(slots, bool)
        self.closing = np.zeros(slots, bool)
        """The last token is drawn and only fed once more, to be read."""
        self.drawn = np.zeros(slots, np.int64)
        self.length = np.ones(slots, np.int64)
        """Tokens in the cache once the next step has run."""
        self.prefill = np.zeros(slots, np.int64)
        self.limit = np.zeros(slots, np.int64)
        self.device = device
        self.host = np.zeros(slots, np.int64)
        """`token` in host memory: one copy a step serves all decisions."""
        self.token = torch.zeros(slots, dtype=torch.long, device=device)
        self.position = torch.zeros(slots, dtype=torch.long, device=device)
        """Where `token` stands in its sequence."""
        self.count = torch.zeros(slots, dtype=torch.long, device=device)
        """Tokens drawn, as `drawn` but on the device."""
        self.history = torch.zeros(slots, capacity, dtype=torch.long, device=device)
        """Prompt and response; padded with the first token, so that a row sees only its own."""
        self.uniform = torch.zeros(slots, longest, dtype=torch.float64, device=device)
        self.settings = RowSettings.empty(slots, vocab, device)
        self.vocab = vocab
        self.all = torch.arange(slots, device=device)

    @property
    def free(self) -> list[int]:
        slots: list[int] = np.flatnonzero(~self.seated).tolist()
        return slots

    @property
    def occupied(self) -> list[int]:
        slots: list[int] = np.flatnonzero(self.seated).tolist()
        return slots

    def rows(self, slots: list[int]) -> Rows:
        index = torch.tensor(slots, device=self.device)
        return Rows(index, index, np.asarray(slots))

    def first(self, n: int) -> Rows:
        return Rows(self.all[:n], slice(0, n), slice(0, n))

    def enter(self, slots: list[int], jobs: list[Job]) -> None:
        """Seat jobs, ready for their prompts to be read and their first tokens to be pushed."""
        index = torch.tensor(slots, device=self.device)
        history = np.empty((len(jobs), self.history.shape[1]), np.int64)
        draws = np.zeros((len(jobs), self.uniform.shape[1]))
        for row, (slot, job) in enumerate(zip(slots, jobs, strict=True)):
            history[row] = job.prompt_ids[0]
            history[row, : len(job.prompt_ids)] = job.prompt_ids
            n = job.trial.sampling.max_new_tokens
            draws[row, :n] = uniforms(job.trial.seed, n).numpy()
            self.jobs[slot], self.seated[slot], self.closing[slot] = job, True, False
            self.drawn[slot], self.limit[slot] = 0, n
            self.length[slot], self.prefill[slot] = len(job.prompt_ids), job.prefill
        self.history[index] = torch.from_numpy(history).to(self.device)
        self.uniform[index] = torch.from_numpy(draws).to(self.device)
        self.position[index] = torch.from_numpy(self.length[slots] - 1).to(self.device)
        self.count[index] = 0
        sampling = [job.trial.sampling for job in jobs]
        self.settings.write(index, RowSettings.pack(sampling, self.vocab, self.device))

    def leave(self, slot: int) -> Job:
        job = self.jobs[slot]
        assert job is not None
        self.jobs[slot], self.seated[slot], self.closing[slot] = None, False, False
        return job

    def push(self, rows: Rows, token: Tensor, host: NDArray[np.int64]) -> None:
        """Take in the tokens [n] just drawn for `rows`, on the device and in host memory."""
        self.host[rows.which] = np.minimum(host, self.vocab - 1)
        last = self.history.shape[1] - 1
        self.token[rows.pick] = token
        # an idle slot runs on without a trial, and stays inside its own row
        self.position[rows.pick] = at = (self.position[rows.pick] + 1).clamp_(max=last)
        self.count[rows.pick] += 1
        self.history[rows.slots, at] = token
        self.drawn[rows.which] += 1
        self.length[rows.which] = np.minimum(self.length[rows.which] + 1, last + 1)

    def move(self, source: int, target: int) -> None:
        """Take the row of `source` to the free slot `target`."""
        rows = (self.token, self.position, self.count, self.history, self.uniform)
        for t in (*rows, *self.settings.tensors()):
            t[target] = t[source]
        host = (self.host, self.closing, self.drawn, self.length, self.prefill, self.limit)
        for a in host:
            a[target] = a[source]
        self.jobs[target], self.jobs[source] = self.jobs[source], None
        self.seated[target], self.seated[source] = True, False

    def tokens(self, slot: int) -> list[int]:
        """Tokens drawn so far in a slot."""
        job = self.jobs[slot]
        assert job is not None
        n = len(job.prompt_ids)
        ids: list[int] = self.history[slot, n : n + int(self.drawn[slot])].tolist()
        return ids
