"""The vLLM general plugin: puts the op behind decoder layers and tells it what each step holds.

vLLM calls `register` in each of its processes. Nothing changes but that a runner, an input
processor and a worker look whether the engine was begun with `additional_config["steerback"]`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steerback import steer
from steerback.engine.places import Place
from steerback.engine.vllm import wire
from steerback.engine.vllm.settings import Checker, Settings
from steerback.engine.vllm.steering import Chunk, Steering
from steerback.errors import UserError

FAMILIES = (
    "Gemma2ForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)
"""Where a decoder layer gives (hidden, residual), whose sum is the residual stream: compared with
transformers in tests/test_vllm.py."""

CHECKERS: list[Checker] = []
"""Of the process that takes requests: one."""
_NOW: list[Steering] = []
"""What the op finds: of the model whose step was planned last, for a process may have several."""
_LIBRARY = torch.library.Library("steerback", "FRAGMENT")  # type: ignore[no-untyped-call]


def steer_op(hidden: Tensor, residual: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    """steerback::steer, between two steps of the compiled model. [tokens, d_model] each."""
    (steering,) = _NOW
    if not steering.busy(layer):
        return hidden.clone(), residual.clone()
    new, rest = steering.site(layer, hidden, residual)
    assert rest is not None
    # what a custom op returns must not be what it was given
    return (hidden.clone() if new is hidden else new), (
        residual.clone() if rest is residual else rest
    )


def _fake(hidden: Tensor, residual: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(hidden), torch.empty_like(residual)


@functools.cache
def register() -> None:
    """Entry point `vllm.general_plugins`."""
    from vllm.utils.torch_utils import direct_register_custom_op
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    direct_register_custom_op("steer", steer_op, fake_impl=_fake, target_lib=_LIBRARY)
    for runner in (GPUModelRunner, CPUModelRunner):
        _after(runner, "load_model", _install)
    _before(GPUModelRunner, "_prepare_inputs", _plan)
    _before(Scheduler, "__init__", lambda _scheduler, vllm_config, *_, **__: _begin(vllm_config))
    _after(InputProcessor, "__init__", _check_requests)


def _after(owner: Any, name: str, then: Callable[[Any], None]) -> None:
    method = owner.__dict__[name]

    @functools.wraps(method)
    def both(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = method(self, *args, **kwargs)
        then(self)
        return out

    setattr(owner, name, both)


def _before(owner: Any, name: str, first: Callable[..., None]) -> None:
    method = owner.__dict__[name]

    @functools.wraps(method)
    def both(self: Any, *args: Any, **kwargs: Any) -> Any:
        first(self, *args, **kwargs)
        return method(self, *args, **kwargs)

    setattr(owner, name, both)


def _begin(vllm_config: Any, *_: Any, **__: Any) -> None:
    """Have blocks of the cache emptied before they are used again: a request whose numbers overflowed
    leaves NaN in its own, which attention would carry into whoever gets them next."""
    from vllm.v1.kv_cache_interface import KVCacheConfig

    if Settings.of(vllm_config) is not None:
        KVCacheConfig.needs_kv_cache_zeroing = property(lambda _config: True)


# --- workers ----------------------------------------------------------------------------------


def _install(runner: Any) -> None:
    """Wrap the chosen layers of a model that was just loaded."""
    settings = Settings.of(runner.vllm_config)
    if settings is None:
        return
    _begin(runner.vllm_config)
    decoder = _decoder(runner)
    packer = steer.Packer(settings.sources(), device=runner.device, dtype=runner.model_config.dtype)
    steering = Steering(packer, settings.layers, runner.max_num_tokens)
    runner.steerback = steering
    _NOW[:] = [steering]
    for layer in settings.layers:
        if not 0 <= layer < len(decoder.layers):
            raise UserError(f"steerback: layer {layer} does not exist; {len(decoder.layers)} do")
        if decoder.start_layer <= layer < decoder.end_layer:
            _wrap(decoder.layers[layer], layer)


def _decoder(runner: Any) -> Any:
    name = type(runner.model).__name__
    if name not in FAMILIES:
        raise UserError(
            f"steerback: {name} was not compared with transformers under vLLM; "
            f"known are {', '.join(FAMILIES)}; use --engine hf"
        )
    return runner.model.model


def _wrap(layer: Any, number: int) -> None:
    forward = layer.forward

    def steered(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        hidden, residual = forward(*args, **kwargs)
        out: tuple[Tensor, Tensor] = torch.ops.steerback.steer(hidden, residual, number)
        return out

    layer.forward = steered


def _plan(runner: Any, scheduled: Any, counts: Any) -> None:
    """Between two steps: seat who is new, let go who is done, say which tokens come."""
    steering: Steering | None = getattr(runner, "steerback", None)
    if steering is None:
        return
    _NOW[:] = [steering]
    for name in scheduled.finished_req_ids:
        steering.leave(name)
    batch = runner.input_batch
    for name in batch.req_ids:
        if name not in steering.seats:
            state = runner.requests[name]
            request = request_of(state.sampling_params)
            if request is not None:
                steering.enter(name, request, state.num_prompt_tokens)
    starts = batch.num_computed_tokens_cpu[: len(batch.req_ids)].tolist()
    chunks = zip(batch.req_ids, starts, counts.tolist(), strict=True)
    steering.plan([Chunk(*chunk) for chunk in chunks])


def request_of(params: Any) -> wire.Request | None:
    """What a request's sampling parameters say; None of one that is not ours."""
    text = (getattr(params, "extra_args", None) or {}).get(wire.KEY)
    return None if text is None else wire.parse(text)


class WorkerMethods:
    """vLLM's `worker_extension_cls`: what can be asked of a worker from outside."""

    model_runner: Any

    def steerback_take(self, keys: list[str]) -> dict[str, Any]:
        """Readings by key as [shape, bytes of float32], and the keys whose logits were no numbers."""
        from steerback.engine.vllm.processor import BROKEN

        steering: Steering = self.model_runner.steerback
        found = {k: [list(v.shape), v.tobytes()] for k, v in steering.take(keys).items()}
        broken = [key for key in keys if key in BROKEN]
        for key in broken:
            del BROKEN[key]
        return {"found": found, "broken": broken}

    def steerback_add(self, name: str, where: str) -> None:
        """Know a file of vectors that was just checked."""
        steering: Steering = self.model_runner.steerback
        steering.packer.sources[name] = Place("vectors", where).open(name)  # type: ignore[index]


# --- the process that takes requests ----------------------------------------------------------


def _check_requests(processor: Any) -> None:
    """Refuse a bad request before the engine sees it, for itself alone."""
    from vllm.exceptions import VLLMValidationError

    settings = Settings.of(processor.vllm_config)
    if settings is None:
        return
    own = processor.validate_logits_processors_params
    check = Checker(settings)
    CHECKERS[:] = [check]

    def validate(params: Any) -> Any:
        try:
            check(getattr(params, "extra_args", None) or {})
        except ValueError as error:
            raise VLLMValidationError(str(error)) from None
        return own(params)

    processor.validate_logits_processors_params = validate
