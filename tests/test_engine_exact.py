"""Bit for bit: the logits of a trial at every token, whoever sits beside it."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import models
import pytest
import torch
from test_engine import MIXED, engine, ragged, trial
from torch import Tensor

from steerback import organism
from steerback.engine import exact
from steerback.engine.base import Pair, Watch
from steerback.engine.decoding import Decoding
from steerback.engine.hf import HFEngine
from steerback.engine.slots import Rows
from steerback.sae import load_sae
from steerback.types import Intervention, Message, Sampling, Trial


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("saes")


SETTINGS = [
    Sampling(max_new_tokens=30),
    Sampling(temperature=1.3, top_p=0.8, max_new_tokens=9),
    Sampling(temperature=0.9, top_k=12, repetition_penalty=1.3, max_new_tokens=50),
    Sampling(temperature=0, max_new_tokens=17),
]
CLAMPS = tuple(Intervention("clamp", "sae", k, 0.0, 1) for k in range(26, 52))


def tiny_trials(n: int) -> list[Trial]:
    edits = [*MIXED, CLAMPS]
    return [
        trial(
            q,
            *edits[i % len(edits)],
            sampling=SETTINGS[i % 4],
            seed=500 + i,
            prefill="abc" * (i % 3),
        )
        for i, q in enumerate(ragged(n))
    ]


def organism_engine(backend: str) -> HFEngine:
    sae = load_sae(organism.sae_path("resister"), name="sae")
    path = organism.path("resister")
    return HFEngine.load(path, device="cpu", sources={"sae": sae}, backend=backend)


def organism_trials(n: int) -> list[Trial]:
    layer = organism.steer_layer("resister")
    adds = [(Intervention("add", "sae", k, 1.0 + k / 9, layer),) for k in range(9)]
    clamps = [
        tuple(Intervention("clamp", "sae", k, float(k % 3), layer) for k in range(m))
        for m in (1, 2, 26, 100)
    ]
    edits = [(), *adds, *clamps, adds[3] + clamps[2]]
    words = [
        "how",
        "do",
        "i",
        "keep",
        "the",
        "recursive",
        "function",
        "from",
        "a",
        "slow",
        "answer",
    ]
    rng = random.Random(3)
    out = []
    for i in range(n):
        question = " ".join(rng.choices(words, k=rng.randint(1, 50)))
        sampling = Sampling(max_new_tokens=rng.randint(5, 50))
        messages = (Message("user", question),)
        out.append(
            Trial("t", "", "organism", question, messages, sampling, i, edits[i % len(edits)])
        )
    return out


def logits_of(
    e: HFEngine,
    trials: list[Trial],
    monkeypatch: pytest.MonkeyPatch,
    watch: Watch | None = None,
    opening: str = "",
) -> dict[str, Tensor]:
    """By trial: the logits [tokens, vocab] from which it drew."""
    seen: dict[str, list[Tensor]] = {}
    accept = Decoding._accept

    def record(self: Decoding, rows: Rows, logits: Tensor, n: int) -> None:
        for i, slot in enumerate(rows.slots.tolist()):
            job = self.table.jobs[slot]
            if job is not None and not self.table.closing[slot]:
                seen.setdefault(job.trial.key, []).append(logits[i].clone())
        accept(self, rows, logits, n)

    with monkeypatch.context() as patch:
        patch.setattr(Decoding, "_accept", record)
        done = list(e.generate(trials, watch=watch, opening=opening))
    assert {g.trial_key: len(g.token_ids) for g in done} == {k: len(v) for k, v in seen.items()}
    return {key: torch.stack(rows) for key, rows in seen.items()}


SUBJECTS = [
    *((kind, "fused") for kind in ("llama", "gemma2", "qwen3", "organism")),
    *((kind, "transformers") for kind in ("llama", "gemma2", "gpt2", "organism")),
]


def subject(folder: Path, kind: str, backend: str) -> tuple[HFEngine, list[Trial]]:
    if kind == "organism":
        return organism_engine(backend), organism_trials(65)
    return engine(folder, kind, backend), tiny_trials(65)


@pytest.mark.parametrize(("kind", "backend"), SUBJECTS)
def test_a_common_opening_is_read_once_and_no_batch_shows(
    folder: Path, kind: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trials whose prompts are steered are read whole."""
    e, trials = subject(folder, kind, backend)
    if not e.block.exact:
        pytest.skip("no number of rows is exact for this model on this machine")
    opening = "how do i keep the recursive function from a slow answer " * 4
    asked = [replace(t, messages=(Message("user", opening + t.question),)) for t in trials]
    chosen = asked[::9]
    e.slots = 17
    whole = logits_of(e, chosen, monkeypatch)
    together = logits_of(e, asked[:40], monkeypatch, opening=opening)
    for t in chosen[:5]:
        (alone,) = logits_of(e, [t], monkeypatch, opening=opening).values()
        assert torch.equal(alone, together[t.key])
        torch.testing.assert_close(alone, whole[t.key], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("kind", "backend"), SUBJECTS)
def test_logits_depend_on_the_trial_alone(
    folder: Path, kind: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone, in threes, 17 and 64 at once, shuffled, others leaving early: the same bits."""
    e, trials = subject(folder, kind, backend)
    if not e.block.exact:
        pytest.skip("no number of rows is exact for this model on this machine")
    chosen = trials[::9]
    alone: dict[str, Tensor] = {}
    for t in chosen:
        alone |= logits_of(e, [t], monkeypatch)
    for slots in (3, 17, 64):
        e.slots = slots
        order = chosen if slots == 3 else list(trials)
        random.Random(slots).shuffle(order)
        watch = Watch("sae", 1, (3,)) if slots == 17 else None
        found = logits_of(e, order, monkeypatch, watch)
        for key, want in alone.items():
            assert found[key].shape == want.shape
            same = (found[key] == want).all(1)
            assert same.all(), f"{slots} slots: first at token {int((~same).nonzero()[0])}"


@pytest.mark.parametrize("backend", ["fused", "transformers"])
@pytest.mark.parametrize("latents", [[3], None])
def test_a_reading_depends_on_the_pair_alone(
    folder: Path, backend: str, latents: list[int] | None
) -> None:
    e = engine(folder, "llama", backend)
    rng = random.Random(1)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(7, models.VOCAB) for _ in range(n))

    pairs = [Pair(ids(3 + i), ids(n), MIXED[i]) for i, n in enumerate((1, 3, 17, 65, 30, 2))]
    together = e.read(pairs, source="sae", layer=2, latents=latents, pool="none")
    for pair, want in zip(pairs, together, strict=True):
        [got] = e.read([pair], source="sae", layer=2, latents=latents, pool="none")
        assert (got.values == want.values).all()


def test_a_watched_trace_depends_on_the_trial_alone(folder: Path) -> None:
    """More trials than slots: rows whose last token is still to be read see others enter."""
    e, trials = engine(folder, slots=16), tiny_trials(40)
    watch = Watch("sae", 2, (4,))
    together = {g.trial_key: g for g in e.generate(trials, watch=watch)}
    texts = {g.trial_key: g.text for g in e.generate(trials)}
    assert {key: g.text for key, g in together.items()} == texts
    for t in trials[::7]:
        [alone] = e.generate([t], watch=watch)
        assert alone.trace is not None
        trace = together[t.key].trace
        assert trace is not None
        assert (alone.trace.values == trace.values).all()


def products(from_rows: int) -> list[exact.Product]:
    """A product that rounds otherwise for fewer rows than `from_rows`."""
    return [exact.Product(8, lambda x: x + 1e-3 * (len(x) < from_rows), cells=8)]


@pytest.mark.parametrize(
    ("from_rows", "block"), [(1, (16, True)), (17, (32, True)), (33, (64, True)), (65, (64, False))]
)
def test_the_block_is_the_least_that_keeps_the_bits(
    from_rows: int, block: tuple[int, bool]
) -> None:
    assert exact.measure(products(from_rows), torch.device("cpu"), torch.float32) == block


def test_no_promise_and_no_padding_in_other_dtypes() -> None:
    assert exact.measure(products(1), torch.device("cpu"), torch.bfloat16) == (1, False)


def test_padding_depends_on_the_sequence_alone() -> None:
    assert [exact.padded(n, 16, 500) for n in (1, 32, 33, 490, 500)] == [32, 32, 64, 500, 500]
    assert exact.padded(33, 64, 512) == 64
    x = torch.randn(17, 2)
    assert torch.equal(exact.filled(x, 16)[:17], x)
    assert exact.filled(x, 16)[17:].tolist() == [[0.0, 0.0]] * 15
    assert exact.filled(x, 17) is x
