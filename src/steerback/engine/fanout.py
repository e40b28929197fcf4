"""Trials fanned out over Ray actors, each with an engine of its own; who asked stays the only writer.

A trial's result depends on the trial alone, so it does not matter which actor makes it, nor that one
which died is made again by another.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from math import ceil
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from steerback.engine.base import Pair, Pool, Progress, Reading, Watch
from steerback.engine.facts import Facts, RemoteEngine
from steerback.engine.shared import Listener, SharedEngine
from steerback.errors import UserError
from steerback.sae import Source
from steerback.types import Generation, Trial

T = TypeVar("T")
ROUNDS = 4
"""Pieces of work that each actor gets of a call, at least: what a slow one delays, a dead one loses."""
DEATHS = 3
"""Actors that may die in a row without anything finished in between."""
START_SECONDS = 1800.0
"""In which a model must be loaded."""

Maker = Callable[[], SharedEngine]


class Holder:
    """What an actor runs: an engine, asked by name."""

    def __init__(self, make: Maker) -> None:
        self.engine = make()

    def kind(self) -> str:
        return self.engine.kind

    def ask(self, method: str, norms: Mapping[int, float], what: Any, given: dict[str, Any]) -> Any:
        """`method` of the engine on a piece of work. norms: those that the driver measured."""
        self.engine.norms.update(norms)
        return list(getattr(self.engine, method)(what, **given))


class RayEngine(RemoteEngine):
    """Engines in actors of a Ray cluster: the one that RAY_ADDRESS names, or one on this machine."""

    _open: ClassVar[list[RayEngine]] = []
    _started: ClassVar[bool] = False
    """Whether this process began Ray, to end it with the last engine."""

    def __init__(
        self,
        make: Maker,
        facts: Facts,
        *,
        name: str,
        sources: Mapping[str, Source],
        slots: int,
        actors: int,
        cpus: float = 1.0,
        gpus: float = 0.0,
    ) -> None:
        """make: loads an engine, in the actor; slots: trials at the same time in each. UserError if Ray
        is missing, or no actor can be placed or load its model."""
        if find_spec("ray") is None:
            raise UserError("engine 'ray' needs Ray; pip install 'steerback[ray]'")
        self.facts, self.eos = facts, facts.eos
        self._begin(name, facts.tokenizer, slots, device="cpu", dtype=torch.float32)
        for source in sources.values():
            self.add_source(source)
        self._ray, began = _connect(ceil(actors * cpus))
        RayEngine._started |= began
        self._open.append(self)
        held: Any = self._ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0)(Holder)
        self._start: Callable[[], Any] = lambda: held.remote(make)
        self._actors: list[Any] = [self._start() for _ in range(actors)]
        try:
            kinds = self._get([a.kind.remote() for a in self._actors], START_SECONDS)
        except UserError:
            self.close()
            raise
        self._kind = f"ray {version('ray')}, {actors} x {kinds[0]}"

    @property
    def kind(self) -> str:
        return self._kind

    def close(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors = []
        if self in self._open:
            self._open.remove(self)
        if RayEngine._started and not self._open:
            self._ray.shutdown()
            RayEngine._started = False

    # --- the engine -----------------------------------------------------------------------------

    def generate(
        self,
        trials: Iterable[Trial],
        *,
        watch: Watch | None = None,
        progress: Callable[[Progress], None] | None = None,
        listener: Listener | None = None,
        opening: str = "",
    ) -> Iterator[Generation]:
        self._refuse(listener)
        whole = [job.trial for job in self._jobs(trials, watch)]
        return self._generate(whole, {"watch": watch, "opening": opening}, progress)

    def _generate(
        self,
        trials: list[Trial],
        given: dict[str, Any],
        progress: Callable[[Progress], None] | None,
    ) -> Iterator[Generation]:
        start, tokens, done = time.perf_counter(), 0, 0
        # long trials first, so that no actor is left alone with them at the end
        trials.sort(key=lambda t: -t.sampling.max_new_tokens)
        for _, made in self._fan_out("generate", trials, given):
            for generation in made:
                done, tokens = done + 1, tokens + len(generation.token_ids)
                yield generation
            if progress is not None:
                progress(Progress(done, len(trials), tokens, time.perf_counter() - start))

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
        self.packer.check([p.interventions for p in pairs])
        chosen = None if latents is None else [int(k) for k in latents]
        given = {"source": source, "layer": layer, "latents": chosen, "pool": pool}
        return self._in_order("read", pairs, given)

    def streams(self, pairs: Sequence[Pair], layer: int) -> list[Tensor]:
        self.check_layer(layer, "reading the residual stream")
        self.packer.check([p.interventions for p in pairs])
        return self._in_order("streams", pairs, {"layer": layer})

    def _in_order(self, method: str, pairs: Sequence[Pair], given: dict[str, Any]) -> list[Any]:
        found = dict(self._fan_out(method, list(pairs), given))
        return [one for at in sorted(found) for one in found[at]]

    # --- the fan-out ----------------------------------------------------------------------------

    def _fan_out(
        self, method: str, work: list[T], given: dict[str, Any]
    ) -> Iterator[tuple[int, list[Any]]]:
        """Pieces of `work` in the order in which they finish: where each began, and its results."""
        size = min(max(1, ceil(len(work) / (ROUNDS * len(self._actors)))), 4 * self.slots)
        waiting = deque(range(0, len(work), size))
        idle = list(range(len(self._actors)))
        flying: dict[Any, tuple[int, int]] = {}
        deaths = 0
        try:
            while waiting or flying:
                while waiting and idle:
                    number, at = idle.pop(), waiting.popleft()
                    piece = work[at : at + size]
                    ask = self._actors[number].ask
                    flying[ask.remote(method, dict(self.norms), piece, given)] = number, at
                (ref, *_), _ = self._ray.wait(list(flying), num_returns=1)
                number, at = flying.pop(ref)
                try:
                    made = self._get(ref)
                except self._ray.exceptions.RayActorError as error:
                    deaths += 1
                    if deaths > DEATHS:
                        raise UserError(f"{deaths} actors died in a row: {_first(error)}") from None
                    self._actors[number] = self._start()
                    waiting.appendleft(at)
                else:
                    deaths = 0
                    yield at, made
                idle.append(number)
        finally:
            for ref in flying:
                self._ray.cancel(ref)

    def _get(self, refs: Any, seconds: float | None = None) -> Any:
        """What the actors said. A UserError of theirs is raised here as it was there."""
        try:
            return self._ray.get(refs, timeout=seconds)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from None
            raise
        except self._ray.exceptions.GetTimeoutError:
            raise UserError(
                f"Ray placed no {len(self._actors)} actors in {seconds:.0f} s; look at `ray status`, "
                "or ask for fewer actors, cpus or gpus"
            ) from None
        except self._ray.exceptions.RayActorError as error:
            if seconds is None:
                raise
            raise UserError(f"an actor could not start: {_first(error)}") from None


def _connect(cpus: int) -> tuple[Any, bool]:
    """Ray, and whether this process started it."""
    import ray as installed

    ray: Any = installed
    if ray.is_initialized():
        return ray, False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if "RAY_ADDRESS" in os.environ:
        ray.init(**quiet)
    else:
        cores = max(cpus, os.cpu_count() or 1)
        ray.init(num_cpus=cores, include_dashboard=False, **quiet)
    return ray, True


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return next((line for line in reversed(lines) if line.strip()), type(error).__name__).strip()
