"""Which engine a configuration asks for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from steerback.config import RunConfig
from steerback.engine.hf import HFEngine
from steerback.engine.places import Place
from steerback.engine.shared import SharedEngine
from steerback.engine.vllm.launch import Options
from steerback.errors import UserError
from steerback.sae import Source


def open_engine(
    config: RunConfig,
    model: str | Path,
    slots: int,
    sources: Mapping[str, Source],
    places: Mapping[str, Place],
) -> SharedEngine:
    """The engine of the run, with its model loaded. sources: for this process; places: where other
    processes find them."""
    kind = config.engine.kind
    if kind == "hf":
        return _here(config, model, slots, sources)
    if config.variant:
        raise UserError(
            f"engine.kind = {kind!r} does not run the published code's ways "
            f"({', '.join(config.variant)}); use --engine hf"
        )
    if kind == "ray":
        return _ray(config, model, slots, sources, places)
    if kind.startswith("http"):
        return _served(config, model, sources, places)
    return _vllm(config, model, slots, places)


def _ray(
    config: RunConfig,
    model: str | Path,
    slots: int,
    sources: Mapping[str, Source],
    places: Mapping[str, Place],
) -> SharedEngine:
    from steerback.engine.facts import Facts
    from steerback.engine.fanout import RayEngine

    engine = config.engine
    own = config.model_copy(update={"engine": engine.model_copy(update={"kind": engine.actor})})
    where = str(Path(model).resolve()) if Path(model).is_dir() else str(model)
    return RayEngine(
        partial(open_in_actor, own, where, slots, dict(places)),
        Facts.of(where, config.model.revision or "main"),
        name=config.model.name,
        sources=sources,
        slots=slots,
        actors=engine.actors,
        cpus=engine.cpus,
        gpus=engine.gpus,
    )


def open_in_actor(
    config: RunConfig, model: str, slots: int, places: Mapping[str, Place]
) -> SharedEngine:
    """`open_engine` where nothing is at hand but what can be sent."""
    sources = {name: place.open(name) for name, place in places.items()}
    return open_engine(config, model, slots, sources, places)


def in_process(engine: SharedEngine) -> HFEngine:
    """The engine, where its weights must be at hand. Raises UserError for another."""
    if isinstance(engine, HFEngine):
        return engine
    raise UserError(
        f"this needs the model in this process, not {engine.kind}; use engine.kind = hf"
    )


def _device(config: RunConfig) -> str | None:
    return None if config.model.device == "auto" else config.model.device


def _here(
    config: RunConfig, model: str | Path, slots: int, sources: Mapping[str, Source]
) -> SharedEngine:
    return HFEngine.load(
        model,
        name=config.model.name,
        device=_device(config),
        dtype=config.model.dtype,
        revision=config.model.revision or "main",
        quantize=config.model.quantize,
        device_map=config.model.device_map,
        sources=sources,
        slots=slots,
        variant=config.variant,
    )


def _served(
    config: RunConfig,
    model: str | Path,
    sources: Mapping[str, Source],
    places: Mapping[str, Place],
) -> SharedEngine:
    from steerback.engine.facts import Facts
    from steerback.engine.vllm.served import ServedEngine

    return ServedEngine(
        config.engine.kind,
        Facts.of(model, config.model.revision or "main"),
        name=config.model.name,
        sources=sources,
        places=places,
    )


def _vllm(
    config: RunConfig, model: str | Path, slots: int, places: Mapping[str, Place]
) -> SharedEngine:
    from steerback.engine.vllm.engine import VLLMEngine

    return VLLMEngine.load(
        model,
        name=config.model.name,
        places=places,
        layers=layers_of(config),
        slots=slots,
        device=_device(config),
        dtype=config.model.dtype,
        revision=config.model.revision or "main",
        options=options_of(config),
    )


def layers_of(config: RunConfig) -> tuple[int, ...]:
    """Layers that vLLM must be able to steer and read."""
    own = (config.model.steer_layer, config.readout_layer, config.sae.layer)
    return tuple(sorted({*own, *config.engine.layers}))


def options_of(config: RunConfig) -> Options:
    engine = config.engine
    return Options(
        tensor_parallel=engine.tensor_parallel,
        pipeline_parallel=engine.pipeline_parallel,
        eager=engine.eager,
        memory=engine.memory,
        quantize=config.model.quantize,
    )


def serving(config: RunConfig, model: str | Path, places: Mapping[str, Place]) -> list[str]:
    """The command line, but for host and port, that serves a run's model with the plugin."""
    from steerback.engine.vllm import launch
    from steerback.engine.vllm.settings import Settings

    launch.prepare()
    settings = Settings(layers_of(config), dict(places), config.model.slots)
    given = launch.arguments(
        settings, options_of(config), config.model.dtype, launch.device(_device(config))
    )
    return launch.command(str(model), config.model.revision, given)
