"""vLLM as an engine of this project: paged caches, tensor and pipeline parallel, quantised weights.

A trial's token is drawn by the same draw from the same uniform as in the in-process engine, so its
text is the same wherever the logits are (they differ in their last bits, as they do between any two
ways to multiply). Watching costs a second, teacher-forced pass over what was said.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steerback.engine.base import Pair, Pool, Progress, Reading, Watch
from steerback.engine.facts import Facts
from steerback.engine.hf import dtype_of
from steerback.engine.places import Place
from steerback.engine.shared import Listener, SharedEngine, traced
from steerback.engine.slots import Job
from steerback.engine.vllm import launch, wire
from steerback.engine.vllm.launch import Options
from steerback.engine.vllm.settings import Settings
from steerback.errors import UserError
from steerback.types import Generation, Intervention, Trial


class VLLMEngine(SharedEngine):
    """An engine whose model runs in vLLM's processes on this machine."""

    def __init__(
        self, llm: Any, facts: Facts, *, name: str, settings: Settings, slots: int
    ) -> None:
        self._llm = llm
        self.facts = facts
        self.layers = settings.layers
        self.eos = facts.eos
        self._begin(name, facts.tokenizer, slots, device="cpu", dtype=torch.float32)
        for source in settings.sources().values():
            self.add_source(source)
        self._sent = 0

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        name: str | None = None,
        places: Mapping[str, Place],
        layers: Iterable[int],
        slots: int,
        device: str | None = None,
        dtype: str = "auto",
        revision: str = "main",
        options: Options | None = None,
    ) -> VLLMEngine:
        """Start vLLM on a folder or a hub name. places: sources by name, for the workers to open;
        layers: those that can be steered or read. UserError if vLLM is missing or cannot run it."""
        launch.prepare()
        facts = Facts.of(path, revision)
        settings = Settings(tuple(sorted(set(layers))), dict(places), slots)
        for layer in settings.layers:
            if not 0 <= layer < facts.n_layers:
                raise UserError(
                    f"layer {layer} does not exist; {path} has 0 to {facts.n_layers - 1}"
                )
        where = device or ("cuda" if torch.cuda.is_available() else "cpu")
        kind = str(dtype_of(dtype, where)).removeprefix("torch.")
        given = launch.arguments(settings, options or Options(), kind, where)
        llm = launch.start(str(path), revision, given)
        return cls(llm, facts, name=name or str(path), settings=settings, slots=slots)

    @property
    def n_layers(self) -> int:
        return self.facts.n_layers

    @property
    def d_model(self) -> int:
        return self.facts.d_model

    @property
    def context(self) -> int:
        """One less than the model has: vLLM does not read a prompt that leaves no room to answer."""
        return self.facts.context - 1

    @property
    def config(self) -> Any:
        return self.facts.config

    @property
    def kind(self) -> str:
        return f"vllm {launch.version_of_vllm()}"

    def close(self) -> None:
        self._llm.llm_engine.engine_core.shutdown()

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
        if listener is not None:
            raise UserError("the vllm engine does not tell single tokens; use --engine hf")
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
                    flying[self._send(job.prompt_ids, *self._draws(job))] = job
                ended = self._step()
                found, broken = self._take(list(ended))
                for key, ids in ended.items():
                    job = flying.pop(key)
                    if key in broken:
                        raise _not_finite(job.trial)
                    if watch is not None and key not in said:
                        again = self._send(*self._reads(_pair(job, ids), watch))
                        flying[again], said[again] = job, ids
                        continue
                    ids = said.pop(key, ids)
                    trace = None if watch is None else traced(watch, job, found[key])
                    done, tokens = done + 1, tokens + len(ids)
                    yield self._generation(job, ids, self._reason(job, ids), trace)
                if progress is not None and ended:
                    seconds = time.perf_counter() - start
                    progress(Progress(done, len(jobs), tokens, seconds))
        finally:
            if flying:
                self._llm.llm_engine.abort_request(list(flying), internal=False)

    def _draws(self, job: Job) -> tuple[wire.Request, int, Sequence[str]]:
        trial = job.trial
        request = wire.Request(
            key=self._key(),
            first=len(job.prompt_ids) - job.prefill,
            seed=trial.seed,
            draw=trial.sampling,
            edits=self._raw(trial.interventions),
        )
        return request, trial.sampling.max_new_tokens, trial.sampling.stop

    def _raw(self, interventions: Sequence[Intervention]) -> tuple[Intervention, ...]:
        """With strengths in raw units: a worker knows no norms."""
        return tuple(
            replace(i, value=self.packer.strength(i), unit="raw") if i.kind == "add" else i
            for i in interventions
        )

    def _key(self) -> str:
        self._sent += 1
        return f"steerback-{self._sent}"

    def _send(
        self, ids: Sequence[int], request: wire.Request, most: int, stop: Sequence[str]
    ) -> str:
        """Hand a request to vLLM; its key."""
        from vllm import SamplingParams

        params = SamplingParams(
            temperature=0.0,
            max_tokens=most,
            seed=request.seed,
            ignore_eos=True,
            stop_token_ids=sorted(self.eos),
            stop=list(stop) or None,
            detokenize=bool(stop),
            extra_args={wire.KEY: request.text()},
        )
        prompt: dict[str, Any] = {"prompt_token_ids": list(ids)}
        if request.salt is not None:
            prompt["cache_salt"] = request.salt
        self._llm.llm_engine.add_request(request.key, prompt, params)
        return request.key

    def _step(self) -> dict[str, list[int]]:
        """Tokens of the requests that ended in one step, by key."""
        return {
            out.request_id: list(out.outputs[0].token_ids)
            for out in self._llm.llm_engine.step()
            if out.finished
        }

    def _take(self, keys: list[str]) -> tuple[dict[str, NDArray[np.float32]], set[str]]:
        """Readings, and keys whose logits were no numbers."""
        found: dict[str, NDArray[np.float32]] = {}
        broken: set[str] = set()
        if keys:
            for one in self._llm.llm_engine.collective_rpc("steerback_take", args=(keys,)):
                broken.update(one["broken"])
                for key, (shape, raw) in one["found"].items():
                    found[key] = np.frombuffer(raw, np.float32).reshape(shape)
        return found, broken

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
                flying[self._send(*self._asks(pair, replace(read, skip=pair.skip)))] = number
            ended = self._step()
            found, _ = self._take(list(ended))
            for key in ended:
                out[flying.pop(key)] = found[key]
        return [out[i] for i in range(len(pairs))]

    def _reads(
        self, pair: Pair, watch: Watch
    ) -> tuple[list[int], wire.Request, int, Sequence[str]]:
        read = wire.Read(watch.source, watch.layer, watch.every, "none", skip=pair.skip)
        return self._asks(pair, read)

    def _asks(
        self, pair: Pair, read: wire.Read
    ) -> tuple[list[int], wire.Request, int, Sequence[str]]:
        request = wire.Request(
            key=self._key(),
            first=len(pair.prompt_ids),
            edits=self._raw(pair.interventions),
            read=read,
        )
        return [*pair.prompt_ids, *pair.response_ids], request, 1, ()


def _pair(job: Job, ids: Sequence[int]) -> Pair:
    """What was said, to be read; a prefill is not, though it is part of the response."""
    first = len(job.prompt_ids) - job.prefill
    return Pair(
        tuple(job.prompt_ids[:first]),
        (*job.prompt_ids[first:], *ids),
        job.trial.interventions,
        skip=job.prefill,
    )


def _not_finite(trial: Trial) -> UserError:
    steering = ", ".join(f"{i.source}:{i.index} = {i.value:g}" for i in trial.interventions)
    return UserError(
        f"the model's logits are not finite for {trial.question[:60]!r} "
        f"(interventions: {steering or 'none'}); lower the strength or use dtype bfloat16"
    )
