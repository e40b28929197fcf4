"""The pipeline on a synthetic model with an SAE, in which it is known which latent causes what.

The model answers one topic per token. Its residual stream is a sum of decoder rows: background that
depends on the token; CAUSE and SHADOW, both high where the topic said is not the topic asked; TOPIC,
which follows the content said. At every token a restart is drawn with a chance that the stream, as it
leaves the layer with all interventions applied, has of CAUSE alone. Nothing else is given: detectors
are found by reading the SAE, and effects come from clamping the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import fake_bench as world
import numpy as np
import pytest
import torch
from torch import Tensor

from steerback import detection, steer
from steerback.detection import Ranking
from steerback.protocols.ablation import Ablation
from steerback.protocols.ablation import Settings as Amount
from steerback.protocols.bench import Floats, Pooling, Text
from steerback.protocols.detectors import RULES, Detectors
from steerback.protocols.detectors import Settings as Search
from steerback.protocols.esr import Esr
from steerback.protocols.matching import Matching
from steerback.protocols.matching import Settings as Match
from steerback.sae import Sae
from steerback.sae.spec import Matrix, SaeSpec
from steerback.sae.tensors import MemoryTensors
from steerback.types import Attempt, Generation, Trial, Verdict, derive_seed

CAUSE, SHADOW, TOPIC = 7, 12, 11
LATENTS, WIDTH, LENGTH = 128, 160, 8
HAZARD = 0.2
"""Chance of a restart at a token where CAUSE is fully on."""
WAIT = 8000


@cache
def sae() -> Sae:
    """JumpReLU with orthonormal decoder rows: a latent reads what was put there, and nothing else."""
    basis = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0)))[
        0
    ]
    rows = basis[:LATENTS].contiguous()
    tensors = {
        "W_enc": rows.T.contiguous(),
        "b_enc": torch.zeros(LATENTS),
        "W_dec": rows,
        "threshold": torch.full((LATENTS,), 0.05),
    }
    spec = SaeSpec(
        file=MemoryTensors(tensors),
        where="planted",
        d_model=WIDTH,
        n=LATENTS,
        architecture="jumprelu",
        W_enc=Matrix("W_enc"),
        W_dec=Matrix("W_dec"),
    )
    return Sae(spec, "sae")


@cache
def stream(asked: int, said: int, place: int) -> Tensor:
    """[d_model]: what enters the edit at a token; it depends on the tokens alone."""
    rng = np.random.default_rng([said, place])
    acts = rng.exponential(size=LATENTS) * (rng.random(LATENTS) < 0.3)
    off = float(said not in (asked, WAIT))
    acts[CAUSE], acts[SHADOW] = 2 * off, off * (1 + rng.random())
    acts[TOPIC] = 2.0 * (said % 3 == 0)
    return torch.tensor(acts, dtype=torch.float32) @ sae().directions(range(LATENTS))


class Model(world.World):
    """A bench on that model."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.packer = steer.Packer({"sae": sae()})
        self.cause = sae().reader([CAUSE])

    def execute(self, trials: Sequence[Trial], what: str) -> list[Generation]:
        todo = self.store.missing(trials)
        said = self._said(todo)
        made = [
            Generation(t.key, (_asked(t),), (*ids, world.END), "x" * len(ids), "eos")
            for t, ids in zip(todo, said, strict=True)
        ]
        self.store.add(zip(todo, made, strict=True))
        self.store.add_verdicts([_verdict(t, g) for t, g in zip(todo, made, strict=True)])
        stored = {t.key: g for t, g in self.store.trials()}
        return [stored[t.key] for t in trials]

    def _said(self, trials: Sequence[Trial]) -> list[list[int]]:
        """All trials advance together; whoever is steered begins with the next topic."""
        edit = self.packer.pack([t.interventions for t in trials]).get(1) if trials else None
        luck = np.array(
            [np.random.default_rng(derive_seed(t.seed, t.question)).random(LENGTH) for t in trials]
        )
        ids: list[list[int]] = [[] for _ in trials]
        topic = [_asked(t) + (t.steered_by is not None) for t in trials]
        for place in range(LENGTH if trials else 0):
            for row, k in zip(ids, topic, strict=True):
                row.append(k)
            h = torch.stack(
                [stream(_asked(t), k, place) for t, k in zip(trials, topic, strict=True)]
            )
            left = h if edit is None else steer.apply(h, edit)
            chance = HAZARD * (self.cause(left)[:, 0] / 2).clamp(0, 1).numpy()
            for n in np.flatnonzero(luck[:, place] < chance):
                if WAIT not in ids[n]:
                    ids[n].append(WAIT)
                    topic[n] = _asked(trials[n])
        return ids

    def read(
        self,
        texts: Sequence[Text],
        *,
        layer: int,
        pool: Pooling = "max",
        latents: Sequence[int] | None = None,
    ) -> Floats:
        reader = sae().reader(latents)
        pools = {
            "max": lambda a: a.amax(0),
            "mean": lambda a: a.mean(0),
            "active": lambda a: (a > 0).float().mean(0),
        }
        return np.stack([pools[pool](reader(self._residual(t))).numpy() for t in texts])

    def _residual(self, text: Text) -> Tensor:
        """[tokens, d_model] as it leaves the layer."""
        h = torch.stack(
            [stream(text.prompt_ids[0], k, place) for place, k in enumerate(text.response_ids)]
        )
        edit = self.packer.pack([text.interventions] * len(h)).get(1)
        return h if edit is None else steer.apply(h, edit)

    near = 80
    """What is nearest to every steered latent, and so in no random set."""

    def nearest(self, latents: Sequence[int], count: int) -> list[list[int]]:
        return [[self.near] for _ in latents]


def _asked(trial: Trial) -> int:
    return int(trial.question.split()[1])


def _verdict(trial: Trial, made: Generation) -> Verdict:
    """The topic asked scores 100, any other 0."""
    end = len(made.text)
    cut = made.token_ids.index(WAIT) if WAIT in made.token_ids else end
    first = 100.0 * (made.token_ids[0] == _asked(trial))
    attempts = [Attempt(0, cut, first), *([Attempt(cut, end, 100.0)] if cut < end else [])]
    return Verdict(trial.key, world.JUDGE, tuple(attempts), "ok")


@pytest.fixture
def bench(tmp_path: Path):
    made = Model(tmp_path / "run")
    yield made
    made.store.close()


def searched(bench: Model) -> dict:
    return Detectors().before(bench, world.inputs(), Search(derangements=3))


def ablated(bench: Model, detectors: list[int], clamp: str = "before") -> dict:
    """Multi-attempt comparisons by title, all arms generated by the model."""
    inputs = world.inputs()
    found = {**searched(bench), "chosen": detectors}
    inputs = replace(inputs, found={"detectors": found})
    bench.execute(Esr().plan(inputs, Esr().settings(prompts_per_direction=20)), "")
    amount = Amount(prompts_per_direction=20, heldout_prompts_per_direction=8, leave_one_out=2)
    protocols = ((Matching(), Match(neighbours=1, clamp=clamp)), (Ablation(), amount))
    for protocol, settings in protocols:
        finding = protocol.before(bench, inputs, settings)
        inputs = replace(inputs, found={**inputs.found, protocol.name: finding})
        stored = {"settings": settings.model_dump(mode="json"), "found": finding}
        bench.store.put_artifact(f"found/{protocol.name}", stored)
    bench.execute(Ablation().plan(inputs, amount), "")
    analysis = Ablation().analyse(bench.records)
    multi = {t: c for t, c in analysis.comparisons if c.measure == "multi_attempt"}
    return multi | {"sheets": analysis.sheets}


RESTARTED = 1 - (1 - HAZARD) ** LENGTH
"""Share of steered answers that restart: CAUSE is on from the first token to the last."""


def test_both_correlates_of_mismatch_lead_every_ranking_and_content_does_not(bench):
    found = searched(bench)
    for columns in found["rankings"].values():
        ranking = Ranking.from_json(columns)
        for rule in RULES:
            assert set(detection.order(ranking, rule)[:2].tolist()) == {CAUSE, SHADOW}
        assert np.flatnonzero(ranking.strict).tolist() == [CAUSE, SHADOW]
        assert abs(ranking.auc[TOPIC] - 0.5) < 0.2
    assert set(found["chosen"]) == {CAUSE, SHADOW}


@pytest.mark.parametrize("clamp", ["before", "after"])
def test_clamping_the_cause_takes_the_restarts_away_and_random_latents_do_not(bench, clamp):
    multi = ablated(bench, [CAUSE], clamp)
    for sample in ("", ", held out"):
        effect = multi[f"detectors{sample}, against steered"]
        assert effect.a == pytest.approx(RESTARTED, abs=0.1)
        assert effect.b == 0
        for title in (effect, multi[f"specific: detectors{sample}, against random sets"]):
            assert title.difference.low <= -RESTARTED <= title.difference.high
            assert title.p < 0.01
        assert multi[f"random sets together{sample}, against steered"].difference.value == 0


def test_a_latent_that_tracks_mismatch_without_causing_anything_has_no_specific_effect(bench):
    bench.near = CAUSE  # else the random sets may hold it, for it is the best match there is
    multi = ablated(bench, [SHADOW])
    for title in ("detectors, against steered", "specific: detectors, against random sets"):
        assert multi[title].difference.value == 0
        assert multi[title].p > 0.5


def test_leaving_one_out_tells_the_cause_from_its_shadow(bench):
    multi = ablated(bench, [CAUSE, SHADOW])
    assert multi["detectors, against steered"].b == 0  # together they look alike
    [sheet] = [s for s in multi["sheets"] if s.title == "Detectors left out one at a time"]
    rows = {row[0]: row for row in sheet.rows}
    assert rows[CAUSE][2] == pytest.approx(
        100 * RESTARTED, abs=10
    )  # not clamped: all restarts are back
    assert rows[CAUSE][4] < 0.01
    assert rows[SHADOW][2] == 0
