"""The page table against sequences kept in plain lists."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from steerback.engine.pages import NOWHERE, SCRATCH, Pages

SIZE = 4


class Twin:
    """A cache of integers behind `Pages`, and the lists that it must always give back."""

    def __init__(self, slots: int, capacity: int) -> None:
        self.pages = Pages(slots, capacity, SIZE, torch.device("cpu"))
        self.cache = np.full((self.pages.total, SIZE), -1)
        self.rows: list[list[int]] = [[] for _ in range(slots)]

    def step(self, new: dict[int, int], width: int) -> None:
        """Rows in `new` grow by a number; those after `width` are empty."""
        for slot, value in new.items():
            self.rows[slot].append(value)
        lengths = np.array([len(row) if s in new else 0 for s, row in enumerate(self.rows[:width])])
        self.rows = [row if s in new else [] for s, row in enumerate(self.rows)]
        self.resize(lengths)
        place = self.pages.places(np.maximum(lengths - 1, 0))
        for slot in range(width):
            value = new.get(slot, -2)
            self.cache[place.page[slot], place.offset[slot]] = value
            assert (place.page[slot] == SCRATCH) == (slot not in new)

    def resize(self, lengths: np.ndarray) -> None:
        self.pages.resize(lengths)
        source, target = self.pages.compact()
        self.cache[target] = self.cache[source]

    def move(self, source: int, target: int) -> None:
        self.pages.move(source, target)
        self.rows[target], self.rows[source] = self.rows[source], []

    def check(self, width: int) -> None:
        view = self.pages.view(width)
        table = view.table.view(width, -1)
        assert view.first.tolist() == [r * table.shape[1] for r in range(width)]
        owned = []
        for slot, row in enumerate(self.rows[:width]):
            held = -(-len(row) // SIZE)
            pages = table[slot].tolist()
            assert pages[held:] == [SCRATCH] * (len(pages) - held)
            for j, page in enumerate(pages[:held]):
                assert (int(view.owner[page]), int(view.start[page])) == (slot, j * SIZE)
            assert self.cache[pages[:held]].ravel()[: len(row)].tolist() == row
            owned += pages[:held]
        assert len(set(owned)) == len(owned)
        nobody = sorted(set(range(len(view.start))) - set(owned))
        assert SCRATCH in nobody
        assert all(int(view.start[page]) == NOWHERE for page in nobody)
        assert self.pages.used <= 1 + len(owned) + self.pages.used // 8
        free = sorted(self.pages._free)
        assert free == sorted(set(range(1, self.pages.total)) - set(owned))


@pytest.mark.parametrize("seed", range(8))
def test_every_row_reads_back_what_it_wrote(seed: int) -> None:
    rng = random.Random(seed)
    slots, capacity = rng.choice([(1, 9), (3, 17), (17, 23), (6, 4)])
    twin = Twin(slots, capacity)
    moves = compactions = 0
    for n in range(300):
        seated = {s for s, row in enumerate(twin.rows) if row and rng.random() > 0.03}
        empty = [s for s in range(slots) if not twin.rows[s]]
        if seated and empty and rng.random() < 0.2:
            source = rng.choice(sorted(seated))
            twin.move(source, rng.choice(empty))
            seated = {s for s, row in enumerate(twin.rows) if row}
            moves += 1
        entering = {s for s in range(slots) if not twin.rows[s] and rng.random() < 0.1}
        grown = {s for s in seated | entering if len(twin.rows[s]) < capacity}
        if not grown:
            continue
        before = twin.pages.used
        width = max(grown) + 1
        twin.step({s: 100 * n + s for s in grown}, width)
        compactions += twin.pages.used < before
        twin.check(width)
    assert slots == 1 or moves > 5
    assert slots == 1 or compactions > 3


def test_lowest_pages_are_taken_and_holes_are_filled() -> None:
    pages = Pages(3, 8, SIZE, torch.device("cpu"))
    pages.resize(np.array([8, 8, 8]))
    assert pages.used == 7
    pages.resize(np.array([0, 0, 8]))
    source, target = pages.compact()
    assert (source, target) == ([5, 6], [1, 2])
    assert pages.used == 3
    assert pages.table[2].tolist() == [1, 2]
