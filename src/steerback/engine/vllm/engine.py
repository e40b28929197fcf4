"""vLLM on this machine: paged caches, tensor and pipeline parallel, quantised weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerback.engine.facts import Facts
from steerback.engine.loading import dtype_of
from steerback.engine.places import Place
from steerback.engine.vllm import launch, wire
from steerback.engine.vllm.asking import Ask, AskingEngine
from steerback.engine.vllm.launch import Options
from steerback.engine.vllm.settings import Settings
from steerback.errors import UserError


class VLLMEngine(AskingEngine):
    """An engine whose model runs in vLLM's processes on this machine."""

    def __init__(
        self, llm: Any, facts: Facts, *, name: str, settings: Settings, slots: int
    ) -> None:
        self._llm = llm
        self._attach(facts, name, slots, settings.layers, list(settings.sources().values()))

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
        where = launch.device(device)
        kind = str(dtype_of(dtype, where)).removeprefix("torch.")
        given = launch.arguments(settings, options or Options(), kind, where)
        llm = launch.start(str(path), revision, given)
        return cls(llm, facts, name=name or str(path), settings=settings, slots=slots)

    @property
    def kind(self) -> str:
        return f"vllm {launch.version_of_vllm()}"

    def close(self) -> None:
        self._llm.llm_engine.engine_core.shutdown()

    def _send(self, ask: Ask) -> str:
        from vllm import SamplingParams

        request = ask.request
        params = SamplingParams(
            temperature=0.0,
            max_tokens=ask.most,
            seed=request.seed,
            ignore_eos=True,
            stop_token_ids=sorted(self.eos),
            stop=list(ask.stop) or None,
            detokenize=bool(ask.stop),
            extra_args={wire.KEY: request.text()},
        )
        prompt: dict[str, Any] = {"prompt_token_ids": list(ask.ids)}
        if request.salt is not None:
            prompt["cache_salt"] = request.salt
        self._llm.llm_engine.add_request(request.key, prompt, params)
        return request.key

    def _step(self) -> dict[str, list[int]]:
        return {
            out.request_id: list(out.outputs[0].token_ids)
            for out in self._llm.llm_engine.step()
            if out.finished
        }

    def _take(self, keys: list[str]) -> tuple[dict[str, NDArray[np.float32]], set[str]]:
        found: dict[str, NDArray[np.float32]] = {}
        broken: set[str] = set()
        if keys:
            for one in self._llm.llm_engine.collective_rpc("steerback_take", args=(keys,)):
                broken.update(one["broken"])
                for key, (shape, raw) in one["found"].items():
                    found[key] = np.frombuffer(raw, np.float32).reshape(shape)
        return found, broken

    def _abort(self, keys: list[str]) -> None:
        self._llm.llm_engine.abort_request(keys, internal=False)
