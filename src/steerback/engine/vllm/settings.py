"""What vLLM is begun with: which layers can be steered and read, and where the directions are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from steerback import steer
from steerback.engine.places import Place
from steerback.engine.vllm import wire
from steerback.errors import UserError, nearest
from steerback.sae import Source

STRAYS = ("steer", "interven", "vector")
"""How a misspelt name of ours among a request's extra arguments would begin."""


@dataclass(frozen=True)
class Settings:
    """`additional_config["steerback"]`: JSON, part of the key under which vLLM keeps compiled code."""

    layers: tuple[int, ...]
    places: Mapping[str, Place]
    slots: int

    @classmethod
    def of(cls, vllm_config: Any) -> Settings | None:
        """None where the engine was begun without us."""
        config = vllm_config.additional_config
        found = config.get(wire.KEY) if isinstance(config, dict) else None
        if found is None:
            return None
        _refuse(vllm_config)
        places = {name: Place(**place) for name, place in found["places"].items()}
        return cls(tuple(found["layers"]), places, found["slots"])

    def as_json(self) -> dict[str, Any]:
        places = {name: asdict(place) for name, place in self.places.items()}
        return {"layers": list(self.layers), "places": places, "slots": self.slots}

    def sources(self) -> dict[str, Source]:
        return {name: place.open(name) for name, place in self.places.items()}


class Checker:
    """What stands before the workers."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.packer = steer.Packer(settings.sources())

    def __call__(self, extra: Mapping[str, Any]) -> None:
        """Raises ValueError for extra arguments that a worker could not carry out."""
        try:
            refuse_strays(extra)
            if wire.KEY in extra:
                check_request(wire.parse(extra[wire.KEY]), self.packer, self.settings.layers)
        except UserError as error:
            raise ValueError(str(error)) from None


def refuse_strays(extra: Mapping[str, Any]) -> None:
    """An argument that looks like a misspelling of ours must not pass as unsteered."""
    for name in extra:
        if name != wire.KEY and str(name).lower().startswith(STRAYS):
            raise UserError(f"unknown argument {name!r}; {nearest(str(name), [wire.KEY])}")


def check_request(request: wire.Request, packer: steer.Packer, layers: Sequence[int]) -> None:
    """Raises UserError unless names, numbers and layers are those of the sources."""
    wire.at_layers(request, layers)
    packer.check([request.edits])
    read = request.read
    if read is not None and read.pool != wire.STREAM:
        source = packer.source(read.source)
        if read.latents is not None and read.latents:
            source.directions(read.latents[:1])
            if max(read.latents) >= source.n:
                raise UserError(
                    f"{read.source} has {source.n} latents; {max(read.latents)} is none"
                )


def _refuse(vllm_config: Any) -> None:
    """Ways of running a model in which a token's stream is not whole where we stand."""
    if vllm_config.use_v2_model_runner:
        raise UserError(
            "steerback steers vLLM's first model runner; set VLLM_USE_V2_MODEL_RUNNER=0"
        )
    if vllm_config.speculative_config is not None:
        raise UserError("steerback and speculative decoding exclude each other")
    if vllm_config.parallel_config.use_ubatching:
        raise UserError("steerback needs whole batches; switch micro-batching off")
