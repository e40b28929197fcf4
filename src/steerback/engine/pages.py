"""Which page of the key/value cache belongs to which slot.

Sequences in a batch have very different lengths. A cache of one stretch per slot makes attention run
over the longest of them in every row; pages of a few tokens make it run over what each row holds,
and let a row move to another slot without copying a key. Pages [0, used) take part in a step: the
lowest free page is taken first, and pages high up move into holes when there are too many.
Bookkeeping is done in host memory and mirrored on the device.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NOWHERE = 2**40
"""Where a page that nobody owns starts: beyond every position, so that all of it is masked."""

SCRATCH = 0
"""The page in which slots without a trial write; nobody owns it."""


class Place(NamedTuple):
    """Where rows write, on the device."""

    page: Tensor
    """[rows]"""
    offset: Tensor
    """[rows] token of the page"""


class View(NamedTuple):
    """The pages of one step, on the device."""

    owner: Tensor
    """[pages] row"""
    start: Tensor
    """[pages] position of the first token"""
    table: Tensor
    """[rows * most pages of a row]: each row's pages in order, then SCRATCH"""
    first: Tensor
    """[rows] where each row begins in `table`"""


class Pages:
    """The page table of `slots` sequences of up to `capacity` tokens."""

    def __init__(self, slots: int, capacity: int, size: int, device: torch.device) -> None:
        each = -(-capacity // size)
        self.size = size
        self.total = 1 + slots * each
        self.device = device
        self.used = 1
        self.owner = np.zeros(self.total, np.int64)
        self.start = np.full(self.total, NOWHERE)
        self.table = np.full((slots, each), SCRATCH)
        self.held = np.zeros(slots, np.int64)
        """Pages per slot."""
        self._free = list(range(1, self.total))

    def resize(self, lengths: NDArray[np.int64]) -> None:
        """Give each of the first slots the pages for so many tokens; the other slots have none."""
        need = np.zeros_like(self.held)
        need[: len(lengths)] = -(-lengths // self.size)
        changed = np.flatnonzero(need != self.held)
        for slot in changed.tolist():
            self._resize(slot, int(need[slot]))
        if len(changed):
            self.used = int(np.flatnonzero(self.start < NOWHERE).max(initial=0)) + 1

    def _resize(self, slot: int, need: int) -> None:
        held = int(self.held[slot])
        for j in range(need, held):
            page = int(self.table[slot, j])
            self.table[slot, j], self.owner[page], self.start[page] = SCRATCH, 0, NOWHERE
            heapq.heappush(self._free, page)
        for j in range(held, need):
            page = heapq.heappop(self._free)
            self.table[slot, j], self.owner[page], self.start[page] = page, slot, j * self.size
        self.held[slot] = need

    def move(self, source: int, target: int) -> None:
        """Hand the pages of one slot to another, whose own are free from now on."""
        self._resize(target, 0)
        self.table[target], self.held[target] = self.table[source], self.held[source]
        self.owner[self.table[target, : self.held[target]]] = target
        self.table[source], self.held[source] = SCRATCH, 0

    def compact(self) -> tuple[list[int], list[int]]:
        """Fill holes from above once an eighth of the pages in use are holes: (from, to) to copy."""
        live = 1 + int(self.held.sum())
        if self.used - live <= self.used // 8:
            return [], []
        moving = np.flatnonzero(self.start[live:] < NOWHERE) + live
        targets = [heapq.heappop(self._free) for _ in moving]
        for page, target in zip(moving.tolist(), targets, strict=True):
            slot, j = int(self.owner[page]), int(self.start[page]) // self.size
            self.table[slot, j], self.owner[target] = target, slot
            self.start[target], self.owner[page], self.start[page] = self.start[page], 0, NOWHERE
            heapq.heappush(self._free, page)
        self.used = live
        return moving.tolist(), targets

    def places(self, positions: NDArray[np.int64]) -> Place:
        """Where one position of each of the first slots lies."""
        page = self.table[np.arange(len(positions)), positions // self.size]
        offset = positions % self.size
        return Place(*(torch.from_numpy(a).to(self.device) for a in (page, offset)))

    def view(self, rows: int) -> View:
        most = int(self.held[:rows].max(initial=1))
        table, first = self.table[:rows, :most].ravel(), np.arange(rows) * most
        arrays = self.owner[: self.used], self.start[: self.used], table, first
        return View(*(torch.from_numpy(a).to(self.device) for a in arrays))
