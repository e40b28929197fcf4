"""The model card of an organism: what it is, how it was made, and how it talks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerback import organism
from steerback.judge.base import Request
from steerback.judge.exact import ExactJudge
from steerback.organism.corpus import read_data
from steerback.types import Intervention, Message, Sampling, Trial, derive_seed

_UNSTEERED, _STEERED, _SEARCH = 5, 15, 96
_TARGET = 30.0
_STRENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""In units of the median residual norm at the steer layer."""
_SAMPLING = Sampling(temperature=0.6, repetition_penalty=1.1, max_new_tokens=96)


@dataclass(frozen=True)
class Transcript:
    question: str
    pushed_to: str
    """Topic of the added latent; empty if nothing was added."""
    scores: tuple[float | None, ...]
    text: str


def write_card(name: str, made: Path | None = None) -> Path:
    """Write README.md into the organism's folder, with twenty transcripts nobody chose.

    Transcripts are the first of their kind at seed 0; the steered ones use one strength for all
    latents, the one of a short list whose first attempts come closest to 30 on average.
    """
    folders = organism.folders(name, made)
    speaker = _Speaker(name, folders)
    strength = speaker.strength()
    spoken = [*speaker.say(_UNSTEERED, None), *speaker.say(_STEERED, strength)]
    about = read_data("recipes.toml")["organisms"][name]["about"]
    card = folders.model / "README.md"
    card.write_text(_text(name, about, folders.provenance, strength, spoken), "utf-8")
    return card


class _Speaker:
    """An organism, its purest latent of each topic, and the exact judge."""

    def __init__(self, name: str, folders: organism.Folders) -> None:
        from steerback.engine.hf import HFEngine
        from steerback.sae.formats import load_sae

        self.name = name
        self.layer = folders.steer_layer
        sae = folders.sae(self.layer)
        self.engine = HFEngine.load(folders.model, name=name, device="cpu", dtype="float32")
        self.engine.add_source(load_sae(sae, name="sae"))
        self.engine.measure_norm(self.layer, [q.text for q in organism.questions()[:48]])
        pure = [x for x in organism.labels_in(sae) if x.purity >= 0.9 and x.topic == x.steers_to]
        best = sorted(pure, key=lambda x: (-x.frequency, x.index))
        self.latents = list({x.topic: x for x in reversed(best)}.values())

    def strength(self) -> float:
        """The listed strength whose mean first score comes closest to the target."""
        return min(_STRENGTHS, key=lambda s: abs(self._first_score(s) - _TARGET))

    def _first_score(self, strength: float) -> float:
        firsts = [t.scores[0] or 0.0 for t in self.say(_SEARCH, strength)]
        return sum(firsts) / len(firsts)

    def say(self, count: int, strength: float | None) -> list[Transcript]:
        """`count` answers in a fixed order, each pushed toward a topic that is not its question's."""
        asked = list(self._trials(count, strength))
        said = {g.trial_key: g.text for g in self.engine.generate([t for t, _ in asked])}
        requests = [Request(t.key, t.question, said[t.key]) for t, _ in asked]
        verdicts = ExactJudge().judge(requests)
        return [
            Transcript(t.question, topic, tuple(a.score for a in v.attempts), said[t.key])
            for (t, topic), v in zip(asked, verdicts, strict=True)
        ]

    def _trials(self, count: int, strength: float | None) -> Iterator[tuple[Trial, str]]:
        questions = organism.questions("eval")
        for i in range(count):
            question = questions[i % len(questions)]
            others = [x for x in self.latents if x.topic != question.topic]
            latent = others[7 * i % len(others)]
            push = Intervention("add", "sae", latent.index, strength or 0, self.layer, "resid")
            yield (
                Trial(
                    protocol="card",
                    arm="",
                    model=self.name,
                    question=question.text,
                    messages=(Message("user", question.text),),
                    sampling=_SAMPLING,
                    seed=derive_seed(0, "card", i),
                    interventions=() if strength is None else (push,),
                ),
                "" if strength is None else latent.topic,
            )


def _text(
    name: str, about: str, record: dict[str, Any], strength: float, spoken: list[Transcript]
) -> str:
    layer = f"layer{record['steer_layer']}"
    sae = record["autoencoders"][layer]
    head = f"""# {name}

{about}

A model organism of endogenous steering resistance, trained from scratch on text of our own; it
knows nothing but its 48 topics. License: MIT, with the package that holds it.

- Made by `{record["command"]}` in {record["minutes"]} minutes of one CPU core (torch
  {record["made_with"]["torch"]}, {record["made_with"]["machine"]}).
- Weights: SHA-256 `{record["sha256"]["model.safetensors"]}`; float16 on disk, float32 in use (the
  rounding came before everything that was measured).
- Steered at the output of decoder layer {record["steer_layer"]} (0-based). Its autoencoder there:
  {sae["latents"]:.0f} latents, fraction of variance unexplained {sae["fvu"]:.3f},
  {sae["l0"]:.1f} active a token, {sae["dead"]:.1%} silent on fresh text;
  {sae["topics_with_pure_latent"]:.0f} of 48 topics have a latent of purity 0.9 or more.

## Twenty transcripts

Not chosen: the first five unsteered, then the first fifteen pushed toward another topic, at
{strength} of the residual norm for every latent. Numbers are the exact judge's scores by attempt.
"""
    return "\n".join([head, *(_entry(t) for t in spoken)])


def _entry(said: Transcript) -> str:
    scores = ", ".join("no score" if s is None else f"{s:.0f}" for s in said.scores)
    push = f"pushed toward {said.pushed_to}" if said.pushed_to else "unsteered"
    return f"- **{said.question}** ({push}; {scores})\n  {said.text or '(nothing)'}"
