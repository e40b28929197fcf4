"""Where the files of an organism are, packaged or made."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Folders:
    model: Path
    """Hugging Face folder, with `provenance.json` and the card."""
    saes: Path
    """Holds `layerL` for each autoencoder."""

    @classmethod
    def under(cls, root: Path, name: str) -> Folders:
        return cls(root / "models" / name, root / "saes" / name)

    def sae(self, layer: int) -> Path:
        """SAELens folder, with `labels.csv`."""
        return self.saes / f"layer{layer}"

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """How it was made; see `packaging.write_provenance`."""
        found: dict[str, Any] = json.loads((self.model / "provenance.json").read_text("utf-8"))
        return found

    @property
    def steer_layer(self) -> int:
        """0-based decoder layer that the organism is steered at."""
        return int(self.provenance["steer_layer"])
