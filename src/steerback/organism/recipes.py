"""Recipes as data: what `data/recipes.toml` may say, and its reading."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from steerback.errors import UserError, nearest
from steerback.organism.corpus import read_data
from steerback.organism.documents import Mixture, mixture_with
from steerback.types import stable_hash


@dataclass(frozen=True)
class Size:
    hidden: int
    layers: int
    heads: int
    latents: int
    """Latents of the organism's autoencoder before those that never fire are dropped."""
    fit_steps: int = 800
    """Training steps of the autoencoder."""
    apart: bool = False
    """Whether the word embeddings of different topics start at right angles, not at random ones: in a
    narrow model random ones are too close for latents that know one topic from all others."""


@dataclass(frozen=True)
class Stage:
    tokens: int
    """Training tokens, padding not counted."""
    rate: float
    """Peak learning rate."""
    boundary: float
    """Loss weight of the token after a full stop, where leaving and coming back are decided."""
    mixture: Mixture
    push: tuple[float, float] = (0.15, 0.8)
    """Range of a push, in units of the mean residual norm at the steer layer."""
    continues: bool = False
    """Goes on with the optimizer and the rate schedule of the stage before it."""


@dataclass(frozen=True)
class Recipe:
    name: str
    size: Size
    seed: int
    stages: tuple[Stage, ...]
    steer_layer: int
    sae_layers: tuple[int, ...]
    """Layers that an autoencoder is made for, the steer layer among them."""

    def key(self, stages: int) -> str:
        """Identifies the checkpoint after the first `stages` stages."""
        return stable_hash(
            [self.size.hidden, self.size.layers, self.size.heads, self.seed, self.steer_layer]
            + [True] * self.size.apart
            + [_plain(asdict(s)) for s in self.stages[:stages]]
        )


@cache
def names() -> tuple[str, ...]:
    """Organisms that have a recipe."""
    return tuple(read_data("recipes.toml")["organisms"])


def recipe(name: str, seed: int | None = None) -> Recipe:
    """The recipe of an organism, at another seed if one is given."""
    data = read_data("recipes.toml")
    if name not in data["organisms"]:
        raise UserError(f"organism {name!r} has no recipe; {nearest(name, data['organisms'])}")
    entry = data["organisms"][name]
    return Recipe(
        name=name,
        size=_size(data["sizes"][entry["size"]], entry),
        seed=entry["seed"] if seed is None else seed,
        stages=tuple(
            _stage(data["stages"], s, entry.get("rate_scale", 1.0)) for s in entry["stages"]
        ),
        steer_layer=data["steer_layer"],
        sae_layers=tuple(entry.get("sae_layers", [data["steer_layer"]])),
    )


def _size(size: dict[str, Any], entry: dict[str, Any]) -> Size:
    """A size, with what an organism says about its own autoencoder."""
    return Size(**size | {k: entry[k] for k in ("latents", "fit_steps") if k in entry})


def _stage(stages: dict[str, Any], name: str, rate_scale: float) -> Stage:
    """A stage by name, its rate scaled; `like` names the stage whose fields it takes over."""
    entry = dict(stages[name])
    entry = {**stages.get(entry.pop("like", ""), {}), **entry}
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
    mixture = mixture_with(Mixture(corrections=0.0), **fields.pop("mixture"))
    fields["rate"] *= rate_scale
    return Stage(mixture=mixture, **fields)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if v is not None}
    return list(value) if isinstance(value, tuple) else value
