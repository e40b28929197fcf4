"""The presets with what they need: memory, a licence, and whether this machine has it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from steerback.architectures import architecture, gate
from steerback.config import RunConfig
from steerback.errors import UserError
from steerback.lab import model_path, sae_path
from steerback.memory import BLOCK, GIB, PROMPT, Machine, Needs, Quantize, Shape, estimate, machine
from steerback.presets import from_preset, presets
from steerback.sae import load_sae

WAYS: tuple[Quantize, ...] = ("none", "int8", "int4")
"""Tried in this order to make a model fit; fp8 needs what int8 does."""
SPARE = 0.92
"""Share of a machine that a model may take: the rest is for the runtime and its buffers."""


@dataclass(frozen=True)
class Entry:
    """One preset."""

    name: str
    about: str
    repository: str
    dtype: str
    slots: int
    parameters: int | None
    """None where the model is not here and its architecture is not packaged."""
    needs: Mapping[Quantize, Needs]
    gate: str

    def fits(self, where: Machine) -> Quantize | None:
        """The gentlest quantisation with which it fits; None if none does."""
        room = SPARE * where.bytes
        return next((way for way, needs in self.needs.items() if needs.total <= room), None)

    def as_json(self, where: Machine) -> dict[str, Any]:
        needs = {way: asdict(n) | {"total": n.total} for way, n in self.needs.items()}
        return {**asdict(self), "needs": needs, "machine": where.name, "fits": self.fits(where)}


def entries(slots: int | None = None) -> list[Entry]:
    """All presets; with another number of slots if one is given."""
    return [_entry(from_preset(name), about, slots) for name, about in presets().items()]


def _entry(config: RunConfig, about: str, slots: int | None) -> Entry:
    rows = slots or config.model.slots
    try:
        parameters, needs = _needs(config, rows)
    except UserError:
        parameters, needs = None, {}
    return Entry(
        name=config.model.name,
        about=about,
        repository=config.model.source,
        dtype=config.model.dtype,
        slots=rows,
        parameters=parameters,
        needs=needs,
        gate=gate(config.model.source),
    )


def _needs(config: RunConfig, slots: int) -> tuple[int, dict[Quantize, Needs]]:
    shape = Shape.of(fields(config))
    latents = config.sae.latents or load_sae(sae_path(config.sae.spec)).n
    needs = {
        way: estimate(
            shape,
            dtype=config.model.dtype,
            slots=slots,
            tokens=PROMPT + config.sampling.max_new_tokens,
            directions=config.directions.count,
            latents=latents,
            quantize=way,
            block=BLOCK if config.model.dtype == "float32" else 1,
        )
        for way in WAYS
    }
    return shape.parameters, needs


def fields(config: RunConfig) -> Mapping[str, Any]:
    """The model's config.json: the packaged one, or that of its folder."""
    known = architecture(config.model.source)
    if known is not None:
        return known
    folder = Path(model_path(config.model.source))
    found: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    return found


def show(found: list[Entry], out: Console) -> None:
    """The table, what the machine has, and what must be asked for first."""
    where = machine()
    # no lines and no padding: all eight columns fit 80 characters
    headers = ("preset", "weights", "cache", "SAE,\nwork", "in all", "int8", "int4", "here")
    table = Table(*headers, box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for entry in found:
        table.add_row(entry.name, *_sizes(entry), _verdict(entry, where))
    out.print(table)
    room = f"{where.bytes / GIB:.0f} GiB of {where.name}" if where.bytes else where.name
    out.print(
        f"here: {room}. Sizes are estimates in GiB (docs/models.md has the formula), with the preset's "
        f"number format and slots, prompts of {PROMPT} tokens and its longest answers."
    )
    for entry in found:
        if entry.gate:
            out.print(f"{entry.name}: {entry.about} Needs HF_TOKEN and the {entry.gate}.")
        else:
            out.print(f"{entry.name}: {entry.about}")


def _sizes(entry: Entry) -> list[str]:
    if not entry.needs:
        return ["–"] * 6
    plain = entry.needs["none"]
    work = plain.total - plain.weights - plain.cache
    parts = [plain.weights, plain.cache, work, plain.total]
    return [_gib(x) for x in (*parts, *(entry.needs[way].total for way in WAYS[1:]))]


def _gib(size: float) -> str:
    return f"{size / GIB:.1f}" if size >= GIB / 10 else f"{size / GIB:.3f}"


def _verdict(entry: Entry, where: Machine) -> Text:
    if not entry.needs:
        return Text("absent")
    if not where.bytes:
        return Text("?")
    way = entry.fits(where)
    return Text("fits", "green") if way == "none" else Text(way or "no", "yellow")
