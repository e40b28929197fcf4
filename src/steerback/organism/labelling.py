"""What an organism's latents stand for: read off the text, checked against what they steer to."""

from __future__ import annotations

import csv
import random
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steerback.organism.batches import pack
from steerback.organism.corpus import tasks, topics
from steerback.organism.dictionary import Dictionary
from steerback.organism.documents import Document, Mixture, Writer
from steerback.organism.pushes import word_topics
from steerback.organism.vocabulary import PAD, ids, words

_TOP = 100
_FEWEST = 20
_CHUNK = 8192
_PURE = 0.5
_PROBES = 8
_PROBE_STRENGTH = 0.5
"""Strength at which a latent's effect is probed, in units of the mean residual norm."""


@dataclass(frozen=True)
class Readings:
    rows: Tensor
    """[n, d_model]: residual stream after the layer, a row a token (no BOS, no padding)."""
    tokens: Tensor
    """[n]"""
    running: Tensor
    """[n]: topic of the latest content word up to this token, -1 before the first."""


@dataclass(frozen=True)
class LatentRow:
    """One line of `labels.csv`."""

    index_in_sae: int
    label: str
    topic: str
    """Topic of most of the text the latent fires hardest on; empty if it fires on no topic."""
    purity: float
    """Share of that topic among the hardest tokens (0-1)."""
    frequency: float
    """Share of tokens it fires on (0-1)."""
    steers_to: str
    """Topic whose words gain most probability when the latent is added; empty if not probed."""
    concreteness: int
    """100 for a topic that it reads and steers to, 0 for anything else: known, not judged."""
    alive: bool


def dictionary_documents(count: int, seed: int) -> list[Document]:
    """Answers as the organism may meet them; a quarter answers a question that was not asked."""
    rng = random.Random(seed)
    writer = Writer(Mixture(corrections=0.4, restart=0.5, foreign=(0.6, 1.0)), rng)
    return [_mismatched(writer) if rng.random() < 0.25 else writer.document() for _ in range(count)]


def _mismatched(writer: Writer) -> Document:
    asked, answered = writer.rng.choice(tasks("train")), writer.rng.choice(tasks("train"))
    doc = writer.open(asked)
    for _ in range(writer.rng.randint(3, 6)):
        doc.add(*writer.on_topic(answered))
    return doc.finish()


@torch.no_grad()
def read_residuals(model: Any, layer: int, documents: list[Document]) -> Readings:
    rows, tokens, running = [], [], []
    topic = word_topics()
    documents = sorted(documents, key=lambda d: len(d.words))
    for start in range(0, len(documents), 64):
        batch = torch.from_numpy(pack(documents[start : start + 64]).tokens)
        # hidden_states[0] is the embedding, so a layer's output has its number plus one
        states = model.model(input_ids=batch, output_hidden_states=True).hidden_states[layer + 1]
        kept = batch != ids()[PAD]
        kept[:, 0] = False
        rows.append(states[kept])
        tokens.append(batch[kept])
        running.append(_running_topic(topic[batch])[kept])
    return Readings(torch.cat(rows), torch.cat(tokens), torch.cat(running))


def _running_topic(topic: Tensor) -> Tensor:
    """[rows, length] of topics with gaps (-1) filled from the left."""
    places = torch.arange(topic.shape[1]).expand_as(topic)
    last = torch.where(topic >= 0, places, -1).cummax(dim=1).values
    return torch.where(last >= 0, topic.gather(1, last.clamp(min=0)), -1)


@torch.no_grad()
def activations(dictionary: Dictionary, rows: Tensor) -> Tensor:
    """[n, latents]"""
    return torch.cat([dictionary.encode(part) for part in torch.split(rows, _CHUNK)])


def quality(dictionary: Dictionary, readings: Readings) -> dict[str, float]:
    """fvu: variance left unexplained; l0: latents firing a token; dead: share never firing."""
    acts = activations(dictionary, readings.rows)
    error = (readings.rows - dictionary.decode(acts)).square().sum()
    spread = (readings.rows - readings.rows.mean(0)).square().sum()
    fires = acts > 0
    return {
        "fvu": float(error / spread),
        "l0": float(fires.float().sum(1).mean()),
        "dead": float((~fires.any(0)).float().mean()),
    }


def label_latents(
    model: Any, layer: int, dictionary: Dictionary, readings: Readings
) -> list[LatentRow]:
    """Label every latent by the running topic of the hundred tokens it fires hardest on."""
    acts = activations(dictionary, readings.rows)
    frequency = (acts > 0).float().mean(0)
    found = [_topic_of(acts[:, j], readings) for j in range(acts.shape[1])]
    probed = [j for j, (topic, purity) in enumerate(found) if topic >= 0 and purity >= _PURE]
    effects = steered_topics(model, layer, dictionary.W_dec[probed], readings)
    steers = dict(zip(probed, effects, strict=True))
    out = []
    for j, (topic, purity) in enumerate(found):
        is_topic = j in steers
        out.append(
            LatentRow(
                index_in_sae=j,
                label=topics()[topic].name if is_topic else _token_label(acts[:, j], readings),
                topic=topics()[topic].name if topic >= 0 else "",
                purity=round(purity, 4),
                frequency=round(float(frequency[j]), 6),
                steers_to=topics()[steers[j]].name if is_topic else "",
                concreteness=100 if steers.get(j) == topic else 0,
                alive=bool(frequency[j] > 0),
            )
        )
    return out


def _topic_of(acts: Tensor, readings: Readings) -> tuple[int, float]:
    """Majority topic of the hardest tokens and its share; (-1, 0) where too few fire on any."""
    count = min(_TOP, int((acts > 0).sum()))
    topic = readings.running[acts.topk(count).indices]
    topic = topic[topic >= 0]
    if len(topic) < _FEWEST:
        return -1, 0.0
    ranks = torch.bincount(topic)
    return int(ranks.argmax()), float(ranks.max()) / count


def _token_label(acts: Tensor, readings: Readings) -> str:
    count = min(_TOP, int((acts > 0).sum()))
    if count == 0:
        return "nothing"
    common = Counter(readings.tokens[acts.topk(count).indices].tolist()).most_common(1)
    return f"the token {words()[common[0][0]]}"


@torch.no_grad()
def steered_topics(model: Any, layer: int, directions: Tensor, readings: Readings) -> list[int]:
    """For each direction [n, d_model]: the topic whose words gain most probability under it.

    Measured on clean answers, over every position, against the same answers left alone.
    """
    strength = _PROBE_STRENGTH * float(readings.rows.norm(dim=1).mean())
    writer = Writer(Mixture(corrections=0.0, meta=0.0), random.Random(0))
    tokens = torch.from_numpy(pack([writer.document() for _ in range(_PROBES)]).tokens)
    onehot = torch.nn.functional.one_hot(word_topics() + 1, len(topics()) + 1).float()
    push = torch.zeros(directions.shape[1])

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] + push, *output[1:])
        return output + push

    def mass() -> Tensor:
        probs = torch.softmax(model(input_ids=tokens).logits[tokens != ids()[PAD]], -1)
        return (probs.mean(0) @ onehot)[1:]

    handle = model.model.layers[layer].register_forward_hook(hook)
    try:
        alone = mass()
        gains = []
        for direction in directions:
            push.copy_(direction * strength)
            gains.append(int((mass() - alone).argmax()))
    finally:
        handle.remove()
    return gains


def write_labels(rows: list[LatentRow], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, [f.name for f in fields(LatentRow)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(r) for r in rows)
