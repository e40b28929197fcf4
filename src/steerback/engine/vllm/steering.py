"""What a worker knows of the requests in its batch, and what it does to their residual streams.

The maths are those of `steer.apply`; here is only which token of a flat batch is under which
interventions. A state is a set of interventions in force; requests share states, and a state's row
is free again once no request has it. Buffers are written between steps and read during one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steerback import steer
from steerback.engine import reading
from steerback.engine.spans import in_force, later_starts
from steerback.engine.vllm.wire import STREAM, Read, Request
from steerback.sae import LatentReader
from steerback.types import Intervention

MOST_FOUND = 4096
"""Readings that wait to be taken; the oldest go first, for whoever asked may be gone."""

State = tuple[Intervention, ...]


class Chunk(NamedTuple):
    """Tokens of one request in a step: positions [start, start + tokens) of its sequence."""

    name: str
    start: int
    tokens: int


@dataclass
class Seat:
    """A request: row `rows[i]` holds from position `cuts[i]` on."""

    request: Request
    cuts: NDArray[np.int64]
    rows: NDArray[np.int64]
    parts: list[Tensor] = field(default_factory=list)
    """Of a reading: the stream so far."""
    upto: int = 0
    """Of a reading: position behind what is in `parts`."""
    length: int = 0
    """Tokens of the prompt."""


class Steering:
    """Interventions of the requests in a batch of at most `tokens` tokens a step."""

    def __init__(self, packer: steer.Packer, layers: Sequence[int], tokens: int) -> None:
        self.packer, self.layers, self.tokens = packer, tuple(layers), tokens
        self.seats: dict[str, Seat] = {}
        self.rows: list[State] = [()]
        """States by row; row 0 is unsteered, and an empty state elsewhere is a free row."""
        self._users: list[int] = [1]
        self._place: dict[State, int] = {(): 0}
        self._free: list[int] = []
        self._dirty: set[int] = set()
        self.edits: dict[int, steer.Edit] = {}
        self._touched: dict[int, Tensor] = {}
        self._row_of = torch.zeros(tokens, dtype=torch.long, device=packer.device)
        """[tokens] row of each token of the step."""
        self.active = False
        """Whether any token of the step is steered."""
        self._reads: dict[int, list[tuple[str, int, int, int]]] = {}
        """By layer: request, its tokens [start, stop) in the batch, position of the first."""
        self.found: dict[str, NDArray[np.float32]] = {}
        """Readings that are done, by key, until they are taken."""
        self._reader: tuple[tuple[str, tuple[int, ...] | None], LatentReader] | None = None

    # --- requests -------------------------------------------------------------------------------

    def enter(self, name: str, request: Request, length: int) -> None:
        """Seat a request with a prompt of `length` tokens."""
        starts = later_starts(request.edits, -1)
        cuts = [0, *(request.first + s for s in starts)]
        states = [in_force(request.edits, at) for at in (-1, *starts)]
        rows = [self._take(state) for state in states]
        self.seats[name] = Seat(request, np.array(cuts), np.array(rows), length=length)

    def leave(self, name: str) -> None:
        seat = self.seats.pop(name, None)
        for row in () if seat is None else seat.rows.tolist():
            self._users[row] -= 1
            if row and not self._users[row]:
                del self._place[self.rows[row]]
                self.rows[row] = ()
                self._free.append(row)

    def _take(self, state: State) -> int:
        """The row of a state; one that was freed is used again."""
        if state not in self._place:
            if self._free:
                row = self._free.pop()
                self.rows[row] = state
            else:
                row = len(self.rows)
                self.rows.append(state)
                self._users.append(0)
            self._place[state] = row
            self._dirty.add(row)
        row = self._place[state]
        self._users[row] += 1
        return row

    # --- between steps --------------------------------------------------------------------------

    def plan(self, chunks: Sequence[Chunk]) -> None:
        """Say which tokens come next, in the order of the batch."""
        self._write()
        row_of = np.zeros(self.tokens, np.int64)
        self._reads = {}
        at = 0
        for name, start, count in chunks:
            seat = self.seats.get(name)
            if seat is not None:
                self._plan_one(name, seat, row_of[at : at + count], start, at)
            at += count
        self.active = bool(row_of.any())
        self._row_of.copy_(torch.from_numpy(row_of))

    def _plan_one(
        self, name: str, seat: Seat, row_of: NDArray[np.int64], start: int, at: int
    ) -> None:
        if len(seat.cuts) == 1:
            row_of[:] = seat.rows[0]
        else:
            positions = np.arange(start, start + len(row_of))
            row_of[:] = seat.rows[np.searchsorted(seat.cuts, positions, side="right") - 1]
        if seat.request.read is not None and start < seat.length:
            self._plan_read(name, seat, seat.request.read, Chunk(name, start, len(row_of)), at)

    def _plan_read(self, name: str, seat: Seat, read: Read, chunk: Chunk, at: int) -> None:
        """Tokens that were read before a preemption are not read again."""
        want = max(seat.upto, seat.request.first + read.skip)
        low = min(max(chunk.start, want), seat.length)
        high = min(chunk.start + chunk.tokens, seat.length)
        if low < high or low == high == seat.length:
            begin = min(at + low - chunk.start, at + chunk.tokens)
            span = (name, begin, begin + high - low, low)
            self._reads.setdefault(read.layer, []).append(span)

    def _write(self) -> None:
        """Bring the buffers up to date: in place where the kinds of edits stay as they are."""
        dirty = sorted(r for r in self._dirty if self.rows[r])
        self._dirty.clear()
        if not dirty:
            return
        new = self.packer.pack([self.rows[r] for r in dirty])
        held = min((edit.rows for edit in self.edits.values()), default=0)
        alike = new.keys() == self.edits.keys() and all(
            new[layer].kind == self.edits[layer].kind for layer in new
        )
        if alike and dirty[-1] < held:
            index = torch.tensor(dirty, device=self.packer.device)
            for layer, edit in new.items():
                self.edits[layer].write(index, edit)
        else:
            self._grow()
            self.edits = self.packer.pack(self.rows)
        self._touched = {layer: self._touches(layer) for layer in self.edits}

    def _grow(self) -> None:
        """Make room ahead, so that the next states are written in place."""
        if not self._free:
            room = len(self.rows)
            self._free = list(range(2 * room - 1, room - 1, -1))
            self.rows += [()] * room
            self._users += [0] * room

    def _touches(self, layer: int) -> Tensor:
        """[rows] bool: whether the row's state edits this layer."""
        rows = [any(i.layer == layer for i in state) for state in self.rows]
        return torch.tensor(rows, device=self.packer.device)

    # --- during a step --------------------------------------------------------------------------

    def busy(self, layer: int) -> bool:
        """Whether the step has anything to do at this layer."""
        return (self.active and layer in self.edits) or layer in self._reads

    def site(
        self, layer: int, hidden: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The two parts of the stream [tokens, d_model] that leave a layer, edited.

        vLLM adds the residual only in the next norm. A steered token's edited sum goes on whole,
        with a residual of zero; an unsteered one's parts are left as they are, bit for bit.
        """
        h = hidden if residual is None else hidden + residual
        n, edit = len(h), self.edits.get(layer)
        if self.active and edit is not None:
            index = self._row_of[:n]
            edited = steer.apply(h, edit.take(index, n))
            where = self._touched[layer][index][:, None]
            hidden = torch.where(where, edited, hidden)
            residual = None if residual is None else residual.masked_fill(where, 0)
            h = edited
        for span in self._reads.get(layer, ()):
            self._keep(h, *span)
        return hidden, residual

    # --- readings -------------------------------------------------------------------------------

    def _keep(self, h: Tensor, name: str, start: int, stop: int, position: int) -> None:
        seat = self.seats[name]
        read = seat.request.read
        assert read is not None
        seat.parts.append(h[start:stop].clone())
        seat.upto = position + stop - start
        if seat.upto >= seat.length:
            while len(self.found) >= MOST_FOUND:
                del self.found[next(iter(self.found))]
            self.found[seat.request.key] = self._pooled(read, torch.cat(seat.parts))
            seat.parts.clear()

    def _pooled(self, read: Read, h: Tensor) -> NDArray[np.float32]:
        if read.pool == STREAM:
            return h.float().cpu().numpy()
        n = self.packer.source(read.source).n if read.latents is None else len(read.latents)
        values = reading.pooled(self._reader_of(read), h, read.pool, 1)  # type: ignore[arg-type]
        return values[..., :n]

    def _reader_of(self, read: Read) -> LatentReader:
        """The last one is kept: a whole encoder is not read again for every request."""
        key = (read.source, read.latents)
        if self._reader is None or self._reader[0] != key:
            asked = None if read.latents is None else steer.widened(read.latents)
            reader = self.packer.source(read.source).reader(asked).to(self.packer.device)
            self._reader = (key, reader)
        return self._reader[1]

    def take(self, keys: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Readings that are done, which are then forgotten."""
        return {key: self.found.pop(key) for key in keys if key in self.found}
