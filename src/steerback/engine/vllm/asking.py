"""What an engine that asks vLLM for trials does, whether vLLM runs here or is served.

A trial's token is drawn by the same draw from the same uniform as in the in-process engine, so its
text is the same wherever the logits are (they differ in their last bits, as they do between any two
ways to multiply). Watching costs a second, teacher-forced pass over what was said.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steerback.engine.base import Pair, Pool, Progress, Reading, Watch
from steerback.engine.facts import Facts, RemoteEngine
from steerback.engine.shared import Listener, not_finite, traced
from steerback.engine.slots import Job
from steerback.engine.vllm import wire
from steerback.errors import UserError
from steerback.sae import Source
from steerback.types import Generation, Intervention, Trial


class Ask(NamedTuple):
    """One request to vLLM."""

    ids: Sequence[int]
    request: wire.Request
    most: int
    """Tokens to draw."""
    stop: Sequence[str] = ()


class AskingEngine(RemoteEngine):
    """The loops over requests; a transport sends them and brings back what became of them."""

    def _attach(
        self, facts: Facts, name: str, slots: int, layers: Sequence[int], sources: Sequence[Source]
    ) -> None:
        self.facts, self.layers, self.eos = facts, tuple(layers), facts.eos
        self._begin(name, facts.tokenizer, slots, device="cpu", dtype=torch.float32)
        for source in sources:
            self.add_source(source)
        self._sent, self._own = 0, uuid4().hex

    # --- the transport --------------------------------------------------------------------------

    def _send(self, ask: Ask) -> str:
        """Hand a request over; its key."""
        raise NotImplementedError

    def _step(self) -> dict[str, list[int]]:
        """Wait until something happens; tokens of the requests that ended, by key."""
        raise NotImplementedError

    def _take(self, keys: list[str]) -> tuple[dict[str, NDArray[np.float32]], set[str]]:
        """Readings, and keys whose logits were no numbers."""
        raise NotImplementedError

    def _abort(self, keys: list[str]) -> None:
        """Forget requests that nobody waits for."""
        raise NotImplementedError

    # --- the model ------------------------------------------------------------------------------

    @property
    def context(self) -> int:
        """One less than the model has: vLLM does not read a prompt that leaves no room to answer."""
        return self.facts.context - 1

    def check_layer(self, layer: int, what: str) -> None:
        super().check_layer(layer, what)
        if layer not in self.layers:
            known = ", ".join(map(str, self.layers))
            raise UserError(
                f"{what}: vLLM was begun to steer and read layers {known}, not {layer}; "
                "add it to engine.layers"
            )

    # --- generation -----------------------------------------------------------------------------

    def generate(
        self,
        trials: Iterable[Trial],
        *,
        watch: Watch | None = None,
        progress: Callable[[Progress], None] | None = None,
        listener: Listener | None = None,
        opening: str = "",
    ) -> Iterator[Generation]:
        """See `Engine.generate`. An opening that prompts share is in vLLM's cache of prefixes anyway."""
        self._refuse(listener)
        return self._generate(self._jobs(trials, watch), watch, progress)

    def _generate(
        self,
        jobs: list[Job],
        watch: Watch | None,
        progress: Callable[[Progress], None] | None,
    ) -> Iterator[Generation]:
        start, tokens, done = time.perf_counter(), 0, 0
        queue = deque(sorted(jobs, key=lambda j: -j.trial.sampling.max_new_tokens))
        flying: dict[str, Job] = {}
        said: dict[str, list[int]] = {}
        try:
            while queue or flying:
                while queue and len(flying) < 2 * self.slots:
                    job = queue.popleft()
                    flying[self._send(self._draws(job))] = job
                ended = self._step()
                found, broken = self._take(list(ended))
                for key, ids in ended.items():
                    job = flying.pop(key)
                    if key in broken:
                        raise not_finite(job.trial)
                    if watch is not None and key not in said:
                        again = self._send(self._reads(_pair(job, ids), watch))
                        flying[again], said[again] = job, ids
                        continue
                    ids = said.pop(key, ids)
                    trace = None if watch is None else traced(watch, job, _there(found, key))
                    done, tokens = done + 1, tokens + len(ids)
                    yield self._generation(job, ids, self._reason(job, ids), trace)
                if progress is not None and ended:
                    seconds = time.perf_counter() - start
                    progress(Progress(done, len(jobs), tokens, seconds))
        finally:
            if flying:
                self._abort(list(flying))

    def _draws(self, job: Job) -> Ask:
        trial = job.trial
        request = wire.Request(
            key=self._key(),
            first=len(job.prompt_ids) - job.prefill,
            seed=trial.seed,
            draw=trial.sampling,
            edits=self._raw(trial.interventions),
        )
        return Ask(job.prompt_ids, request, trial.sampling.max_new_tokens, trial.sampling.stop)

    def _raw(self, interventions: Sequence[Intervention]) -> tuple[Intervention, ...]:
        """With strengths in raw units: a worker knows no norms."""
        return tuple(
            replace(i, value=self.packer.strength(i), unit="raw") if i.kind == "add" else i
            for i in interventions
        )

    def _key(self) -> str:
        self._sent += 1
        return f"{self._own}-{self._sent}"

    # --- readouts -------------------------------------------------------------------------------

    def read(
        self,
        pairs: Sequence[Pair],
        *,
        source: str,
        layer: int,
        latents: Sequence[int] | None = None,
        pool: Pool = "max",
    ) -> list[Reading]:
        self.check_layer(layer, f"reading {source}")
        self.packer.source(source).reader(None if latents is None else list(latents[:1]))
        chosen = None if latents is None else tuple(int(k) for k in latents)
        return [Reading(v) for v in self._readings(pairs, wire.Read(source, layer, chosen, pool))]

    def streams(self, pairs: Sequence[Pair], layer: int) -> list[Tensor]:
        self.check_layer(layer, "reading the residual stream")
        read = wire.Read("", layer, None, wire.STREAM)
        return [torch.from_numpy(v.copy()) for v in self._readings(pairs, read)]

    def _readings(self, pairs: Sequence[Pair], read: wire.Read) -> list[NDArray[np.float32]]:
        self.packer.check([p.interventions for p in pairs])
        waiting = deque(enumerate(pairs))
        flying: dict[str, int] = {}
        out: dict[int, NDArray[np.float32]] = {}
        while waiting or flying:
            while waiting and len(flying) < 2 * self.slots:
                number, pair = waiting.popleft()
                flying[self._send(self._asks(pair, replace(read, skip=pair.skip)))] = number
            ended = self._step()
            found, _ = self._take(list(ended))
            for key in ended:
                out[flying.pop(key)] = _there(found, key)
        return [out[i] for i in range(len(pairs))]

    def _reads(self, pair: Pair, watch: Watch) -> Ask:
        read = wire.Read(watch.source, watch.layer, watch.every, "none", skip=pair.skip)
        return self._asks(pair, read)

    def _asks(self, pair: Pair, read: wire.Read) -> Ask:
        request = wire.Request(
            key=self._key(),
            first=len(pair.prompt_ids),
            edits=self._raw(pair.interventions),
            read=read,
        )
        return Ask([*pair.prompt_ids, *pair.response_ids], request, most=1)


def _there(found: dict[str, NDArray[np.float32]], key: str) -> NDArray[np.float32]:
    if key not in found:
        raise UserError(
            "vLLM dropped a reading before it was taken; too many ask one server at once"
        )
    return found[key]


def _pair(job: Job, ids: Sequence[int]) -> Pair:
    """What was said, to be read; a prefill is not, though it is part of the response."""
    first = len(job.prompt_ids) - job.prefill
    return Pair(
        tuple(job.prompt_ids[:first]),
        (*job.prompt_ids[first:], *ids),
        job.trial.interventions,
        skip=job.prefill,
    )
