"""SAE weights and the activations they define, read from published files without pickle."""

from steerback.sae.core import Sae
from steerback.sae.formats import load_sae
from steerback.sae.readers import LatentReader
from steerback.sae.source import Source

__all__ = ["LatentReader", "Sae", "Source", "load_sae"]
