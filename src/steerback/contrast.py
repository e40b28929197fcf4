"""Directions from contrastive texts: how the residual stream differs between two kinds of text.

Each text is read teacher-forced without a prompt, and its tokens at one layer are averaged to h
[d_model]. With m+ and m- the means of h over the two kinds of text, d = m+ - m-, and S the covariance of
tokens around the mean of their text, pooled over both kinds:

    means     d                          (difference of means)
    whitened  (S + l I)^-1 d             (Fisher's discriminant, l = SHRINKAGE tr(S) / d_model)
    pca       first right singular vector of the rows h - m- over the positive texts, with the sign of d

All are scaled to the norm of d, so that a strength means as much with one as with another.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from steerback import tomlfile
from steerback.engine.base import Pair
from steerback.engine.shared import SharedEngine
from steerback.errors import UserError
from steerback.types import derive_seed, stable_hash
from steerback.vectors import VectorSet

Method = Literal["means", "whitened", "pca"]
Floats = NDArray[np.float64]
SHRINKAGE = 0.1
ORGANISM = "organism"
_TEXTS, _SENTENCES = 12, 4
"""Packaged texts per topic, and sentences of each."""


@dataclass(frozen=True)
class Contrast:
    """Two kinds of text that differ in what the direction is to stand for."""

    name: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]


def load_contrasts(spec: str) -> list[Contrast]:
    """`organism`: each of the organisms' topics against all others. Else a TOML file with a table per
    direction, `positive` and `negative` lists of texts; without `negative`, the other tables' positives.

    Raises UserError naming the file and the table.
    """
    tables = _organism() if spec == ORGANISM else _read(spec)
    out = []
    for name, (positive, negative) in tables.items():
        others = [t for other, (texts, _) in tables.items() if other != name for t in texts]
        if not (against := negative or others):
            raise UserError(
                f"{spec}: [{name}] has no negative texts, and no other table has texts to take instead"
            )
        out.append(Contrast(name, tuple(positive), tuple(against)))
    return out


Lists = tuple[list[str], list[str]]


def _read(spec: str) -> dict[str, Lists]:
    found: dict[str, Lists] = {}
    for name, table in tomlfile.read(Path(spec)).data.items():
        lists = [table.get(k, []) for k in ("positive", "negative")] if _known(table) else []
        if not lists or not lists[0] or not all(map(_texts, lists)):
            raise UserError(
                f'{spec}: [{name}] is to hold positive = ["a text", ...] and, if wanted, negative'
            )
        found[name] = (lists[0], lists[1])
    if not found:
        raise UserError(f"{spec}: no direction; write a table for each, with positive = [...]")
    return found


def _known(table: Any) -> bool:
    return isinstance(table, dict) and set(table) <= {"positive", "negative"}


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(t, str) and t.strip() for t in value)


def _organism() -> dict[str, Lists]:
    """Sentences of the organisms' language, filled with the words of one topic; the same every time."""
    from steerback.organism import corpus  # its world is read only by those who ask for it

    rng = random.Random(0)

    def sentence(topic: corpus.Topic) -> str:
        words = rng.choice(corpus.phrases().sentences)
        filled = [rng.choice(topic.words[w[1]]) if w[0] == "{" else w for w in words]
        return corpus.text(filled)

    return {
        topic.name: (
            [" ".join(sentence(topic) for _ in range(_SENTENCES)) for _ in range(_TEXTS)],
            [],
        )
        for topic in corpus.topics()
    }


# --- vectors ---------------------------------------------------------------------------------


def make(
    engine: SharedEngine,
    layer: int,
    contrasts: Sequence[Contrast],
    *,
    method: Method = "means",
    random_ones: int = 0,
    seed: int = 0,
    provenance: Mapping[str, Any] | None = None,
) -> VectorSet:
    """One vector per contrast, then random ones of their median norm. `provenance` is kept with them."""
    texts = _Texts.read(engine, layer, contrasts)
    found = [texts.vector(c, method) for c in contrasts]
    vectors = [v for v, _ in found]
    norm = float(np.median([np.linalg.norm(v) for v in vectors]))
    rng = np.random.default_rng(derive_seed(seed, "random directions"))
    for _ in range(random_ones):
        drawn = rng.standard_normal(engine.d_model)
        vectors.append(norm * drawn / np.linalg.norm(drawn))
    labels = [c.name for c in contrasts] + [f"random {n}" for n in range(1, random_ones + 1)]
    told = {
        "method": method,
        "model": engine.name,
        "layer": layer,
        "seed": seed,
        "texts_hash": stable_hash([[c.name, c.positive, c.negative] for c in contrasts]),
        "separations": [m for _, m in found] + [None] * random_ones,
        **(provenance or {}),
    }
    return VectorSet("vectors", torch.tensor(np.array(vectors), dtype=torch.float32), labels, told)


@dataclass(frozen=True)
class _Texts:
    """All texts at one layer, each once."""

    means: Mapping[str, Floats]
    """[d_model], over the tokens of the text."""
    spread: Mapping[str, Floats]
    """[d_model, d_model]: sum over tokens of the outer product of their distance to that mean."""
    tokens: Mapping[str, int]

    @classmethod
    def read(cls, engine: SharedEngine, layer: int, contrasts: Sequence[Contrast]) -> _Texts:
        every = list(dict.fromkeys(t for c in contrasts for t in (*c.positive, *c.negative)))
        streams = engine.streams([plain_text(engine, t) for t in every], layer)
        means, spread, tokens = {}, {}, {}
        for text, h in zip(every, streams, strict=True):
            wide = h.numpy().astype(np.float64)
            means[text] = wide.mean(axis=0)
            centred = wide - means[text]
            spread[text] = centred.T @ centred
            tokens[text] = len(wide)
        return cls(means, spread, tokens)

    def vector(self, contrast: Contrast, method: Method) -> tuple[Floats, float]:
        """The direction, and how far apart the two kinds of text lie along it."""
        high, low = (
            np.mean([self.means[t] for t in texts], axis=0)
            for texts in (contrast.positive, contrast.negative)
        )
        difference = high - low
        norm = float(np.linalg.norm(difference))
        if norm == 0:
            raise UserError(f"[{contrast.name}]: both kinds of text give one mean; use others")
        unit = difference / norm
        if method == "whitened":
            unit = _unit(np.linalg.solve(self._covariance(contrast), difference))
        elif method == "pca":
            rows = np.array([self.means[t] for t in contrast.positive]) - low
            unit = np.linalg.svd(rows, full_matrices=False)[2][0]
            unit = unit * (1 if unit @ difference >= 0 else -1)
        return norm * unit, float(difference @ unit)

    def _covariance(self, contrast: Contrast) -> Floats:
        texts = (*contrast.positive, *contrast.negative)
        total = sum(self.tokens[t] for t in texts)
        pooled = np.sum([self.spread[t] for t in texts], axis=0) / max(1, total - len(texts))
        shrink = SHRINKAGE * float(np.trace(pooled)) / len(pooled)
        return np.asarray(pooled + max(shrink, 1e-12) * np.eye(len(pooled)))


def plain_text(engine: SharedEngine, text: str) -> Pair:
    """A text to be read after nothing: after the token that begins texts, where the model has one; its
    first token otherwise, which is an outlier in every model and is not read."""
    ids = engine.encode(text)
    begin = getattr(engine.tokenizer, "bos_token_id", None)
    pair = Pair(ids[:1], ids[1:]) if begin is None else Pair((int(begin),), ids)
    if not pair.response_ids:
        raise UserError(f"text {text[:40]!r} is too short to be read; use whole sentences")
    return pair


def _unit(vector: Floats) -> Floats:
    return np.asarray(vector / np.linalg.norm(vector))


def nearest(
    vectors: VectorSet,
    engine: SharedEngine,
    source: str,
    count: int,
    indices: Sequence[int] | None = None,
) -> list[list[tuple[int, float]]]:
    """For each vector (None: all) the latents of an SAE with the largest cosine, and the cosine; best
    first."""
    sae = engine.sources[source]
    wanted = range(vectors.n) if indices is None else indices
    own = torch.nn.functional.normalize(vectors.directions(wanted), dim=1)
    best = torch.zeros(len(wanted), 0)
    which = torch.zeros(len(wanted), 0, dtype=torch.long)
    for start in range(0, sae.n, 4096):
        block = range(start, min(start + 4096, sae.n))
        cosine = own @ torch.nn.functional.normalize(sae.directions(block), dim=1).T
        best = torch.cat([best, cosine], 1)
        which = torch.cat([which, torch.tensor(block).expand(len(wanted), -1)], 1)
        best, order = best.topk(min(count, best.shape[1]), dim=1)
        which = which.gather(1, order)
    return [
        [(int(k), float(c)) for k, c in zip(ks, cs, strict=True)]
        for ks, cs in zip(which, best, strict=True)
    ]
