"""Model organisms: tiny language models that differ in one known respect, made and packaged by us.

Importing this loads no model library.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from steerback.errors import UserError, nearest
from steerback.organism import corpus
from steerback.organism.corpus import Split
from steerback.organism.folders import Folders

__all__ = [
    "Folders",
    "Label",
    "Question",
    "checked",
    "folders",
    "labels",
    "labels_in",
    "names",
    "path",
    "questions",
    "sae_path",
    "steer_layer",
    "train",
]

_PER_TOPIC = 3


@dataclass(frozen=True)
class Question:
    text: str
    topic: str


@dataclass(frozen=True)
class Label:
    """What one latent is known to be."""

    index: int
    label: str
    topic: str
    """Topic of most of the text it fires on; empty if none."""
    purity: float
    """Share of that topic in the text it fires on (0-1)."""
    frequency: float
    """Share of tokens it fires on (0-1)."""
    steers_to: str
    """Topic that adding it makes the model talk about; empty if it is not a topic latent."""
    concreteness: int
    """100 for a topic that it reads and steers to, 0 otherwise."""
    alive: bool


def names() -> list[str]:
    """The packaged organisms."""
    models = _root() / "models"
    return sorted(p.parent.name for p in models.glob("*/config.json"))


def checked() -> list[str]:
    """The packaged organisms of which something is expected (see `organism.check`)."""
    expected = corpus.read_data("expected.toml")
    return [name for name in names() if name in expected]


def folders(name: str, made: Path | None = None) -> Folders:
    """Of the packaged organism, or of one that `train` wrote under `made`.

    Raises UserError if it is not there.
    """
    if made is None:
        known = names()
        if name not in known:
            raise UserError(f"no organism is called {name!r}; {nearest(name, known)}")
        return Folders.under(_root(), name)
    found = Folders.under(made, name)
    if not (found.model / "provenance.json").is_file():
        raise UserError(
            f"{found.model} holds no organism; make it by `steerback organism train {name} --out {made}`"
        )
    return found


def path(name: str) -> Path:
    """Hugging Face folder of a packaged organism. Raises UserError for an unknown name."""
    return folders(name).model


def steer_layer(name: str) -> int:
    """0-based decoder layer that the organism is steered at, and its autoencoder reads."""
    return folders(name).steer_layer


def sae_path(name: str, layer: int | None = None) -> Path:
    """SAELens folder of the organism's autoencoder at a layer (default: the steer layer)."""
    own = folders(name)
    wanted = own.sae(own.steer_layer if layer is None else layer)
    if not wanted.is_dir():
        have = sorted(p.name for p in own.saes.glob("layer*"))
        raise UserError(f"organism {name!r} has no autoencoder for {wanted.name}; it has {have}")
    return wanted


def labels(name: str, layer: int | None = None) -> list[Label]:
    """Every latent of the organism's autoencoder, in order."""
    return labels_in(sae_path(name, layer))


def labels_in(sae: Path) -> list[Label]:
    """Every latent of the autoencoder in a folder, in order."""
    with (sae / "labels.csv").open(encoding="utf-8", newline="") as lines:
        return [
            Label(
                index=int(row["index_in_sae"]),
                label=row["label"],
                topic=row["topic"],
                purity=float(row["purity"]),
                frequency=float(row["frequency"]),
                steers_to=row["steers_to"],
                concreteness=int(row["concreteness"]),
                alive=row["alive"] == "True",
            )
            for row in csv.DictReader(lines)
        ]


@cache
def _questions(split: Split) -> tuple[Question, ...]:
    forms = corpus.phrases().questions
    by_topic: dict[int, list[corpus.Task]] = {}
    for task in corpus.tasks(split):
        by_topic.setdefault(task.topic, []).append(task)
    return tuple(
        Question(
            corpus.text(corpus.fill(forms[(topic + n) % len(forms)], task.words())),
            corpus.topics()[topic].name,
        )
        for n in range(_PER_TOPIC)
        for topic, found in by_topic.items()
        for task in [found[n * len(found) // _PER_TOPIC]]
    )


def questions(split: Split = "eval") -> list[Question]:
    """Three questions a topic. `eval` and `heldout` ask tasks that no training document held.

    Topics alternate, so that any first n questions cover as many topics as they can.
    """
    if split not in ("train", "eval", "heldout"):
        raise UserError(f"questions have no split {split!r}; use 'eval', 'heldout' or 'train'")
    return list(_questions(split))


def train(
    name: str,
    out: Path,
    work: Path | None = None,
    seed: int | None = None,
    report: Callable[[str], None] = print,
) -> Path:
    """Make an organism from its recipe; its model folder. See `packaging.train`."""
    from steerback.organism import packaging

    return packaging.train(name, out, work, seed, report).model


def _root() -> Path:
    return Path(str(files(__name__)))
