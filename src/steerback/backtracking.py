"""Latents whose labels speak of taking back what was said: keyword weights, packaged and editable."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from steerback import tomlfile
from steerback.errors import UserError


@dataclass(frozen=True)
class Keywords:
    """Weights of words and phrases; `*` at the end of a word stands for any ending."""

    weights: Mapping[str, float]

    def weight(self, label: str) -> float:
        """Sum of the weights of all entries that the label holds, each once."""
        return sum(w for word, w in self.weights.items() if _pattern(word).search(label))


def _pattern(entry: str) -> re.Pattern[str]:
    words = [re.escape(word).replace(r"\*", r"[\w'’]*") for word in entry.split()]
    return re.compile(r"(?<!\w)" + r"\s+".join(words) + r"(?!\w)", re.IGNORECASE)


def load(path: str | Path | None = None) -> Keywords:
    """The packaged keywords, or those of a file.

    Raises UserError: the file cannot be read, has no table [weights], or a weight is no number.
    """
    if not path:
        text = files("steerback").joinpath("data/backtracking.toml").read_text("utf-8")
        return Keywords({k: float(w) for k, w in tomlfile.parse(text)["weights"].items()})
    document = tomlfile.read(path)
    weights = document.data.get("weights")
    if not isinstance(weights, dict) or not weights:
        raise UserError(f'{path}: no table [weights]; write lines such as "start over" = 4 in one')
    for word, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise document.error(("weights", word), f"the weight of {word!r} should be a number")
        if not word.strip(" *"):
            raise document.error(("weights", word), "a keyword should hold letters")
    return Keywords({k: float(w) for k, w in weights.items()})


def by_label(
    labels: Mapping[int, str], keywords: Keywords, least: float
) -> list[tuple[int, float]]:
    """(latent, weight) of labels with `least` or more, the heaviest first."""
    found = [(k, keywords.weight(label)) for k, label in labels.items()]
    return sorted(((k, w) for k, w in found if w >= least), key=lambda kw: (-kw[1], kw[0]))
