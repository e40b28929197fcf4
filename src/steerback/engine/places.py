"""Where directions are, for processes that cannot be handed them: workers, actors, servers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from steerback.sae import Source, load_sae
from steerback.vectors import VectorSet


@dataclass(frozen=True)
class Place:
    """A source of directions that every worker can open."""

    kind: str
    """sae or vectors"""
    where: str

    def open(self, name: str) -> Source:
        if self.kind == "vectors":
            return VectorSet.load(self.where, name)
        path = Path(self.where)
        return load_sae(path if path.exists() else self.where, name=name)
