"""The loop: trials enter free slots, all slots advance by one token, finished trials leave.

`Decoding.steps` is the data flow: admit, step, retire. A trial's text depends on the trial alone;
which slot it has and who sits beside it only decides how fast it comes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steerback import steer
from steerback.engine import exact
from steerback.engine.base import Backend, Sites, Watch
from steerback.engine.sampling import draw
from steerback.engine.shared import not_finite
from steerback.engine.slots import Job, Rows, Table
from steerback.engine.spans import Span, in_force, later_starts, sequence_sites
from steerback.types import FinishReason

PREFILL_TOKENS = 8192
"""Prompt tokens read at once, padding included: bounds the memory of a prefill."""

NEVER = np.iinfo(np.int64).max

Finished = tuple[Job, list[int], FinishReason, "Tensor | None"]
Ending = Callable[[Job, list[int]], bool]
"""Whether a stop string ends this response."""


class Recorder:
    """Activations of watched latents, written during decoding: [slots, longest, latents]."""

    def __init__(self, watch: Watch, packer: steer.Packer, table: Table, longest: int) -> None:
        self.layer = watch.layer
        self.n = len(watch.every)
        reader = packer.source(watch.source).reader(steer.widened(watch.every))
        self.reader = reader.to(packer.device)
        self.longest = longest
        self.table = table
        slots = len(table.jobs)
        self.values = torch.zeros(slots, longest, self.n, device=packer.device)
        self._flat = self.values.view(slots * longest, -1)
        self._first = torch.arange(slots, device=packer.device) * longest

    def record(self, h: Tensor) -> Tensor:
        """h: [rows, d_model], the residual stream at the last drawn token of each slot."""
        rows = len(h)
        at = (self.table.count[:rows] - 1).clamp_(0, self.longest - 1)
        self._flat.index_copy_(0, self._first[:rows] + at, self.reader(h)[:, : self.n].float())
        return h


class Decoding:
    """One call of `generate` over a list of jobs."""

    def __init__(
        self,
        backend: Backend,
        packer: steer.Packer,
        jobs: Sequence[Job],
        *,
        slots: int,
        eos: frozenset[int],
        stops: Ending,
        watch: Watch | None = None,
        listener: Callable[[Job, int], None] | None = None,
        opening: Sequence[int] = (),
    ) -> None:
        # long trials first, so that the last to leave do not run alone for long
        self.queue = deque(sorted(jobs, key=lambda j: -j.trial.sampling.max_new_tokens))
        self.backend, self.packer, self.stops, self.listener = backend, packer, stops, listener
        self.slots = min(slots, len(jobs))
        """Trials at once."""
        self.block = backend.block.rows
        self.opening = list(opening)
        """What all prompts begin with."""
        rows = exact.up(self.slots, self.block)
        longest = max(j.trial.sampling.max_new_tokens for j in jobs)
        # a watched trial draws one token more, which is dropped
        capacity = exact.up(max(j.room for j in jobs) + 1, exact.LENGTH)
        self.cache = backend.allocate(rows, capacity, self._opening_ids())
        self.table = Table(rows, capacity, longest, backend.vocab, backend.device)
        self.recorder = Recorder(watch, packer, self.table, longest) if watch else None
        self.rows: list[steer.Row] = [()] * rows
        self.edits: dict[int, steer.Edit] = {}
        self.next_start = np.full(rows, NEVER)
        self.width = rows
        """Rows that take part in a step: the first ones. A multiple of `block`."""
        self._rebuild_sites()
        self.eos = eos
        self._is_eos = np.isin(np.arange(backend.vocab), list(eos))
        settings = [j.trial.sampling for j in jobs]
        self.filters = any(0 < s.top_k < backend.vocab or s.top_p < 1 for s in settings)
        self.greedy = any(s.temperature == 0 for s in settings)
        self.any_stops = any(s.stop for s in settings)

    def steps(self) -> Iterator[list[Finished]]:
        """Advance until nothing is left; what finished after each step."""
        while self.queue or self.table.seated.any():
            finished = self.retire(stepped=False) if self.admit() else []
            if self.table.seated.any():
                self.step()
                finished += self.retire(stepped=True)
            yield finished

    def unfinished(self) -> list[Job]:
        """Jobs not yet handed out."""
        seated = [job for job in self.table.jobs if job is not None]
        return seated + list(self.queue)

    # --- entering -----------------------------------------------------------------------------

    def admit(self) -> bool:
        """Fill free slots, several at once; when nobody waits, close ranks instead."""
        if not self.queue:
            self._close_ranks()
            return False
        free = self.table.free[: self.slots - int(self.table.seated.sum())]
        patience = min(len(self.queue), max(1, self.slots // 8))
        if len(free) < patience:
            return False
        while free and self.queue:
            for length, jobs in self._by_length(self._next_batch(len(free))):
                self._enter(free[: len(jobs)], jobs, length)
                free = free[len(jobs) :]
        return True

    def _next_batch(self, room: int) -> list[Job]:
        """Waiting jobs whose padded prompts fit the prefill budget (at least one)."""
        jobs: list[Job] = []
        longest = 0
        while self.queue and len(jobs) < room:
            longest = max(longest, self._to_read(self.queue[0]))
            if jobs and longest * (len(jobs) + 1) > PREFILL_TOKENS:
                break
            jobs.append(self.queue.popleft())
        return jobs

    def _opening_ids(self) -> Tensor | None:
        ids = torch.tensor([self.opening], device=self.backend.device)
        return ids if self.opening else None

    def _to_read(self, job: Job) -> int:
        """Tokens of the prompt after the opening."""
        return len(job.prompt_ids) - len(self.opening)

    def _by_length(self, jobs: list[Job]) -> list[tuple[int, list[Job]]]:
        """Jobs whose prompts are padded to the same length, which depends on each prompt alone."""
        groups: dict[int, list[Job]] = {}
        room = self.backend.context - len(self.opening)
        for job in jobs:
            length = exact.padded(self._to_read(job), self.block, room)
            groups.setdefault(length, []).append(job)
        return sorted(groups.items())

    def _enter(self, slots: list[int], jobs: list[Job], length: int) -> None:
        self.table.enter(slots, jobs)
        device = self.backend.device
        lengths = np.array([self._to_read(j) for j in jobs])
        ids = np.zeros((len(jobs), length), np.int64)
        for row, job, n in zip(ids, jobs, lengths, strict=True):
            row[:n] = job.prompt_ids[len(self.opening) :]
        rows = self.table.rows(slots)
        logits = self.backend.prefill(
            self.cache,
            torch.from_numpy(ids).to(device),
            lengths,
            np.asarray(slots),
            sequence_sites(self.packer, [self._span(job) for job in jobs], length),
        )
        self._accept(rows, logits, len(self.opening) + length)
        for slot, job in zip(slots, jobs, strict=True):
            self._put_in_force(slot, job, job.prefill)
        self._write(slots)

    def _span(self, job: Job) -> Span:
        """Where the interventions act in what is read after the opening."""
        n = self._to_read(job)
        return Span(job.trial.interventions, n - job.prefill, n)

    def _put_in_force(self, slot: int, job: Job, at: int) -> None:
        """Note what edits the slot's next fed token, the `at`-th of its response."""
        self.rows[slot] = in_force(job.trial.interventions, at)
        self.next_start[slot] = next(iter(later_starts(job.trial.interventions, at)), NEVER)

    def _write(self, slots: list[int]) -> None:
        """Bring the decode edits of these slots up to date: in place where their kind allows it."""
        new = self.packer.pack([self.rows[s] for s in slots])
        same = new.keys() == self.edits.keys() and all(
            new[layer].kind == self.edits[layer].kind for layer in new
        )
        if same:
            index = torch.tensor(slots, device=self.backend.device)
            for layer, edit in new.items():
                self.edits[layer].write(index, edit)
        else:
            self.edits = self.packer.pack(self.rows)
            self._rebuild_sites()

    def _rebuild_sites(self) -> None:
        """One site per layer that is edited or watched, over the first `width` slots."""
        heads = {
            layer: edit.take(slice(0, self.width), self.width) for layer, edit in self.edits.items()
        }
        watched = {self.recorder.layer} if self.recorder else set()
        self.sites: Sites = {
            layer: self._site(layer, heads.get(layer)) for layer in heads.keys() | watched
        }

    def _site(self, layer: int, edit: steer.Edit | None) -> Callable[[Tensor], Tensor]:
        recorder = self.recorder if self.recorder and self.recorder.layer == layer else None

        def site(h: Tensor) -> Tensor:
            out = h if edit is None else steer.apply(h, edit)
            return out if recorder is None else recorder.record(out)

        return site

    def _close_ranks(self) -> None:
        """Move the last rows into free slots once a quarter of the step would be idle."""
        width = exact.up(int(self.table.seated.sum()), self.block)
        if not width or width > self.width * 3 // 4:
            return
        holes = [s for s in range(width) if self.table.jobs[s] is None]
        sources = [s for s in self.table.occupied if s >= width]
        for target, source in zip(holes[: len(sources)], sources, strict=True):
            self._move(source, target)
        self.width = width
        self._rebuild_sites()

    def _move(self, source: int, target: int) -> None:
        self.backend.move(self.cache, source, target)
        self.table.move(source, target)
        self.rows[target], self.rows[source] = self.rows[source], ()
        self.next_start[target] = self.next_start[source]
        self.next_start[source] = NEVER
        if self.recorder:
            self.recorder.values[target] = self.recorder.values[source]
        to, fro = (torch.tensor([s], device=self.backend.device) for s in (target, source))
        for edit in self.edits.values():
            edit.write(to, edit.take(fro, 1))

    # --- one token ----------------------------------------------------------------------------

    def step(self) -> None:
        """Feed each slot its last token and draw the next."""
        self._start_late_interventions()
        table, n = self.table, self.width
        lengths = np.where(table.seated[:n], table.length[:n], 0)
        logits = self.backend.step(self.cache, table.token[:n], lengths, self.sites)
        self._accept(table.first(n), logits, int(lengths.max()))

    def _start_late_interventions(self) -> None:
        """Interventions `from:N` whose first token is fed next."""
        due = self._reached()
        for slot in due:
            job = self.table.jobs[slot]
            assert job is not None
            self._put_in_force(slot, job, job.prefill + int(self.table.drawn[slot]) - 1)
        if due:
            self._write(due)

    def _reached(self) -> list[int]:
        """Slots whose next fed token is at or past their next start."""
        at = self.table.prefill + self.table.drawn - 1
        slots: list[int] = np.flatnonzero(self.table.seated & (at >= self.next_start)).tolist()
        return slots

    def _accept(self, rows: Rows, logits: Tensor, seen: int) -> None:
        """Draw one token for each of `rows` and take it in; their first `seen` places are filled."""
        table = self.table
        last = table.uniform.shape[1] - 1
        token = draw(
            logits,
            table.history[rows.pick, :seen],
            table.settings.take(rows.pick),
            table.uniform[rows.slots, table.count[rows.pick].clamp(max=last)],
            filters=self.filters,
            greedy=self.greedy,
        )
        host = token.cpu().numpy()
        self._check_finite(rows, host)
        table.push(rows, token.clamp_(max=self.backend.vocab - 1), host)
        if self.listener is not None:
            self._tell(rows.slots.tolist(), token.tolist())

    def _check_finite(self, rows: Rows, token: NDArray[np.int64]) -> None:
        """Logits that are not numbers draw the token past the vocabulary: never go on with those."""
        bad = (token >= self.backend.vocab) & self.table.seated[rows.which]
        if bad.any():
            job = self.table.jobs[int(rows.slots[int(bad.argmax())])]
            assert job is not None
            raise not_finite(job.trial)

    def _tell(self, slots: list[int], tokens: list[int]) -> None:
        assert self.listener is not None
        for slot, token in zip(slots, tokens, strict=True):
            job = self.table.jobs[slot]
            if job is not None and not self.table.closing[slot]:
                self.listener(job, token)

    # --- leaving ------------------------------------------------------------------------------

    def retire(self, *, stepped: bool) -> list[Finished]:
        """Let finished rows go. A watched row stays until the next step, so that its last token is
        read; `stepped` says whether there was one since the last call."""
        table = self.table
        ended = self._is_eos[table.host] | (table.drawn >= table.limit)
        if not self.any_stops and not (table.seated & (ended | table.closing)).any():
            return []
        out: list[Finished] = []
        for slot in table.occupied:
            if table.closing[slot]:
                if stepped:
                    out.append(self._finish(slot, table.tokens(slot)[:-1]))
            elif ended[slot] or self._stopped(slot):
                if self.recorder is None:
                    out.append(self._finish(slot, table.tokens(slot)))
                else:
                    table.closing[slot] = True
        return out

    def _stopped(self, slot: int) -> bool:
        job = self.table.jobs[slot]
        assert job is not None
        return bool(job.trial.sampling.stop) and self.stops(job, self.table.tokens(slot))

    def _finish(self, slot: int, ids: list[int]) -> Finished:
        trace = None
        if self.recorder is not None:
            trace = self.recorder.values[slot, : len(ids)].clone()
        job = self.table.leave(slot)
        self.next_start[slot] = NEVER
        reason: FinishReason = "length"
        if ids[-1] in self.eos:
            reason = "eos"
        elif job.trial.sampling.stop and self.stops(job, ids):
            reason = "stop"
        return job, ids, reason, trace
