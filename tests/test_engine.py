"""The engine against `generate()`, hooks written out in full, and itself in other batches."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import models
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from steerback import chat
from steerback.engine.base import Pair, Progress, Watch
from steerback.engine.decoding import Decoding
from steerback.engine.hf import HFEngine
from steerback.engine.hooked import decoder_layers, hooked
from steerback.errors import UserError
from steerback.types import Generation, Intervention, Message, Sampling, Trial
from steerback.vectors import VectorSet

GREEDY = Sampling(temperature=0, repetition_penalty=1.1, max_new_tokens=24)
BACKENDS = [(kind, "fused") for kind in models.FUSED] + [
    (kind, "transformers") for kind in models.BUILDERS
]
WEIGHTS = models.sae_weights()
OTHER = models.sae_weights(seed=11)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("saes")


def engine(folder: Path, kind: str = "llama", backend: str = "fused", slots: int = 5) -> HFEngine:
    sources = {
        "sae": models.sae(folder / "sae", WEIGHTS, "sae"),
        "other": models.sae(folder / "other", OTHER, "other"),
        "vectors": VectorSet("vectors", OTHER["W_dec"]),
    }
    return HFEngine(
        models.build(kind),
        models.tokenizer(),
        name=kind,
        sources=sources,
        slots=slots,
        backend=backend,
    )


def trial(
    question: str,
    *interventions: Intervention,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    prefill: str = "",
) -> Trial:
    return Trial(
        "test",
        "arm",
        "tiny",
        question,
        (Message("user", question),),
        sampling,
        seed,
        interventions,
        prefill,
    )


def run(engine: HFEngine, trials: Sequence[Trial], **options: object) -> list[Generation]:
    """Generations in the order of the trials."""
    found = {g.trial_key: g for g in engine.generate(trials, **options)}
    assert len(found) == len({t.key for t in trials})
    return [found[t.key] for t in trials]


def ragged(n: int) -> list[str]:
    return [("how to fold a map " * 3)[: 1 + 7 * i % 41] for i in range(n)]


def reference(
    model: nn.Module, prompt: Sequence[int], trial: Trial, edit: Callable | None = None
) -> list[int]:
    """Greedy tokens from transformers, `edit(layer, h, positions)` hooked to every layer."""
    at = 0
    handles = []
    layers = decoder_layers(model)

    def hook(layer: int) -> Callable:
        def hooked_forward(_module: nn.Module, _inputs: object, output: object) -> object:
            nonlocal at
            h = output[0] if isinstance(output, tuple) else output
            new = edit(layer, h[0], torch.arange(at, at + h.shape[1]))[None]
            if layer == len(layers) - 1:
                at += h.shape[1]
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return hooked_forward

    if edit is not None:
        handles = [m.register_forward_hook(hook(i)) for i, m in enumerate(layers)]
    out = model.generate(
        torch.tensor([list(prompt)]),
        do_sample=False,
        max_new_tokens=trial.sampling.max_new_tokens,
        repetition_penalty=trial.sampling.repetition_penalty,
    )
    for handle in handles:
        handle.remove()
    return out[0, len(prompt) :].tolist()


def full_edit(trial: Trial, first: int) -> Callable:
    """Encode everything, edit, decode, add the error: for each layer, at each position."""
    weights = {"sae": WEIGHTS, "other": OTHER}

    def edit(layer: int, h: Tensor, positions: Tensor) -> Tensor:
        out = h.clone()
        for row, position in enumerate(positions.tolist()):
            active = [
                i
                for i in trial.interventions
                if i.layer == layer and (i.start is None or position - first >= i.start)
            ]
            for name, w in weights.items():
                own = [i for i in active if i.source == name]
                acts = models.encode(w, h[row])
                changed, added = acts.clone(), h[row]
                for i in own:
                    if i.kind == "clamp":
                        changed[i.index] = i.value
                for i in own:
                    if i.kind == "add":
                        changed[i.index] += i.value
                        added = added + i.value * w["W_dec"][i.index]
                out[row] = out[row] + changed @ w["W_dec"] - acts @ w["W_dec"]
                late = models.encode(w, added)
                for i in own:
                    if i.kind == "clamp-after":
                        out[row] = out[row] + (i.value - late[i.index]) * w["W_dec"][i.index]
            for i in active:
                if i.source == "vectors":
                    out[row] = out[row] + i.value * OTHER["W_dec"][i.index]
        return out

    return edit


@pytest.mark.parametrize(("kind", "backend"), BACKENDS)
def test_greedy_equals_generate(folder: Path, kind: str, backend: str) -> None:
    e = engine(folder, kind, backend)
    assert e.backend.kind == backend
    trials = [
        trial(q, sampling=replace(GREEDY, max_new_tokens=5 + 3 * i))
        for i, q in enumerate(ragged(11))
    ]
    for t, g in zip(trials, run(e, trials), strict=True):
        assert list(g.token_ids) == reference(e.model, g.prompt_ids, t), t.question


MIXED = [
    (Intervention("add", "sae", 3, 6.0, 1),),
    (Intervention("clamp", "sae", 5, 0.0, 1), Intervention("clamp", "sae", 9, 4.0, 1)),
    (Intervention("add", "sae", 9, -5.0, 2), Intervention("clamp", "sae", 9, 3.0, 2)),
    (Intervention("add", "sae", 3, 4.0, 0), Intervention("add", "other", 8, 5.0, 2)),
    (Intervention("add", "sae", 9, 7.0, 1), Intervention("clamp-after", "sae", 30, 5.0, 1)),
    (Intervention("add", "vectors", 8, 5.0, 3, positions="all"),),
    (Intervention("add", "sae", 20, 6.0, 1, positions="from:6"),),
    (
        Intervention("add", "other", 2, 5.0, 1, positions="from:3"),
        Intervention("clamp", "other", 7, 6.0, 1, positions="all"),
        Intervention("add", "sae", 2, 5.0, 1, positions="from:9"),
    ),
    (),
]


@pytest.mark.parametrize(("kind", "backend"), BACKENDS)
def test_steered_equals_hooked_generate(folder: Path, kind: str, backend: str) -> None:
    """One batch of rows that share nothing, each equal to its own generate() with full hooks."""
    e = engine(folder, kind, backend)
    prefills = ["", "so then ", "", "x", "", "", "abc", "well, ", "yes"]
    trials = [
        trial(q, *interventions, prefill=prefill)
        for q, interventions, prefill in zip(ragged(9), MIXED, prefills, strict=True)
    ]
    differ = 0
    for t, g in zip(trials, run(e, trials), strict=True):
        first = len(g.prompt_ids) - len(e.encode(t.prefill))
        want = reference(e.model, g.prompt_ids, t, full_edit(t, first))
        assert list(g.token_ids) == want, t.interventions
        differ += want != reference(e.model, g.prompt_ids, t)
    assert differ >= 5  # the edits are strong enough to show


def varied(n: int) -> list[Trial]:
    settings = [
        Sampling(max_new_tokens=30),
        Sampling(temperature=1.3, top_p=0.8, max_new_tokens=9),
        Sampling(temperature=0.9, top_k=12, repetition_penalty=1.3, max_new_tokens=41),
        Sampling(temperature=0, max_new_tokens=17),
    ]
    return [
        trial(q, *MIXED[i % len(MIXED)], sampling=settings[i % 4], seed=1000 + i)
        for i, q in enumerate(ragged(n))
    ]


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_text_depends_on_the_trial_alone(folder: Path, kind: str) -> None:
    trials = varied(65)
    alone = run(engine(folder, kind, slots=1), trials)
    for slots in (3, 17, 64):
        order = list(trials)
        random.Random(slots).shuffle(order)
        texts = {g.trial_key: g for g in engine(folder, kind, slots=slots).generate(order)}
        assert [texts[t.key] for t in trials] == alone
    assert len({g.text for g in alone}) > 60


def test_sampled_texts_differ_by_seed_only(folder: Path) -> None:
    e = engine(folder)
    same = [trial("a", sampling=Sampling(max_new_tokens=20), seed=s) for s in (1, 1, 2)]
    texts = {t.seed: g.text for t, g in zip(same, run(e, same), strict=True)}
    assert texts[1] != texts[2]


def test_watch_equals_a_teacher_forced_read(folder: Path) -> None:
    e = engine(folder)
    latents = (4, 30, 4, 59)
    trials = varied(9)
    watch = Watch("sae", 2, latents)
    plain = run(e, trials)
    for t, g, unwatched in zip(trials, run(e, trials, watch=watch), plain, strict=True):
        assert g.text == unwatched.text
        assert g.trace is not None
        assert g.trace.values.shape == (len(g.token_ids), len(latents))
        pair = Pair(g.prompt_ids, g.token_ids, t.interventions)
        [reading] = e.read([pair], source="sae", layer=2, latents=latents, pool="none")
        np.testing.assert_allclose(g.trace.values, reading.values, atol=2e-4)


def test_a_watch_keeps_of_each_trial_what_it_adds_itself(folder: Path) -> None:
    e = engine(folder)
    trials = varied(17)
    every = tuple(range(60))
    whole = run(e, trials, watch=Watch("sae", 2, every))
    found = run(e, trials, watch=Watch("sae", 2, (9, 3), own=every))
    kept = set()
    for t, g, w in zip(trials, found, whole, strict=True):
        added = {i.index for i in t.interventions if i.kind == "add" and i.source == "sae"}
        own = [k for k in every if k in added and k not in (9, 3)]
        kept |= {*own}
        assert g.trace is not None
        assert w.trace is not None
        assert g.trace.latents == (9, 3, *own)
        columns = [every.index(k) for k in g.trace.latents]
        np.testing.assert_allclose(g.trace.values, w.trace.values[:, columns], atol=1e-5)
    assert kept


def test_read_skips_the_tokens_it_is_told_to(folder: Path) -> None:
    e = engine(folder)
    for t, g in zip(trials := varied(9), run(e, trials), strict=True):
        skip = len(g.token_ids) // 2
        pairs = [Pair(g.prompt_ids, g.token_ids, t.interventions, skip=n) for n in (0, skip)]
        whole, part = (r.values for r in e.read(pairs, source="sae", layer=2, pool="none"))
        np.testing.assert_allclose(part, whole[skip:], atol=2e-4)


@pytest.mark.parametrize("backend", ["fused", "transformers"])
def test_read_equals_a_naive_pass(folder: Path, backend: str) -> None:
    e = engine(folder, backend=backend)
    rng = random.Random(0)
    pairs = [
        Pair(
            tuple(rng.randrange(7, models.VOCAB) for _ in range(3 + i)),
            tuple(rng.randrange(7, models.VOCAB) for _ in range(n)),
        )
        for i, n in enumerate((1, 3, 17, 65))
    ]
    pooled = {p: e.read(pairs, source="sae", layer=1, pool=p) for p in ("none", "max", "mean")}
    for i, pair in enumerate(pairs):
        ids = torch.tensor([[*pair.prompt_ids, *pair.response_ids]])
        with torch.no_grad():
            states = e.model(input_ids=ids, output_hidden_states=True).hidden_states
        acts = models.encode(WEIGHTS, states[2][0, len(pair.prompt_ids) :])
        for pool, want in (("none", acts), ("max", acts.amax(0)), ("mean", acts.mean(0))):
            np.testing.assert_allclose(pooled[pool][i].values, want, atol=1e-4)


def test_read_streams_in_pieces(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    e = engine(folder)
    pairs = [Pair((8, 9), tuple(range(10, 10 + n))) for n in (1, 3, 17, 65)]
    whole = e.read(pairs, source="sae", layer=1)
    monkeypatch.setattr("steerback.engine.reading.READ_TOKENS", 40)
    monkeypatch.setattr("steerback.engine.reading.READ_CELLS", 200)
    for a, b in zip(whole, e.read(pairs, source="sae", layer=1), strict=True):
        np.testing.assert_allclose(a.values, b.values, atol=1e-5)


def test_pooled_readings_are_rows_of_one_array(folder: Path) -> None:
    """Many small arrays that stay, among large ones that go, hold several times their own memory."""
    pairs = [Pair((8, 9), tuple(range(10, 10 + n))) for n in (1, 3, 17)]
    first, *others = engine(folder).read(pairs, source="sae", layer=1)
    assert first.values.base is not None
    assert all(r.values.base is first.values.base for r in others)


def test_end_token_and_stop_string_end_a_response(folder: Path) -> None:
    e = engine(folder)
    base = trial("stop here", sampling=replace(GREEDY, max_new_tokens=40))
    [free] = run(e, [base])
    third = free.token_ids[2]
    e.eos = frozenset([third])
    [ended] = run(e, [base])
    assert ended.finish_reason == "eos"
    assert ended.token_ids == free.token_ids[: free.token_ids.index(third) + 1]
    e.eos = frozenset()
    stop = free.text[5:7]
    stopping = trial("stop here", sampling=replace(base.sampling, stop=(stop, "never said")))
    [stopped] = run(e, [stopping])
    assert stopped.finish_reason == "stop"
    assert stopped.text == free.text[: free.text.index(stop)]
    assert len(stopped.token_ids) < len(free.token_ids)


def test_prefill_is_part_of_the_text(folder: Path) -> None:
    e = engine(folder)
    [g] = run(e, [trial("q", prefill="Sure — naïvely, ")])
    assert g.text.startswith("Sure — naïvely, ")
    assert list(g.prompt_ids[-len(e.encode("Sure — naïvely, ")) :]) == list(
        e.encode("Sure — naïvely, ")
    )


def test_progress_counts_trials_and_tokens(folder: Path) -> None:
    seen: list[Progress] = []
    done = run(engine(folder), varied(9), progress=seen.append)
    assert seen[-1].done == seen[-1].total == 9
    assert seen[-1].tokens == sum(len(g.token_ids) for g in done)
    assert seen[-1].seconds_left == 0
    assert seen[-1].rate > 0


def test_listener_hears_every_token_once(folder: Path) -> None:
    heard: dict[str, list[int]] = {}
    trials = varied(9)
    watch = Watch("sae", 1, (1,))
    done = run(
        engine(folder),
        trials,
        watch=watch,
        listener=lambda t, token: heard.setdefault(t.key, []).append(token),
    )
    assert heard == {g.trial_key: list(g.token_ids) for g in done}


def test_out_of_memory_halves_the_slots_and_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = varied(9)
    want = run(engine(folder), trials)
    e = engine(folder, slots=8)
    step, calls = Decoding.step, iter(range(10**6))

    def starved(self: Decoding) -> None:
        if self.slots > 2 and next(calls) % 7 == 6:
            raise torch.OutOfMemoryError("no room")
        step(self)

    monkeypatch.setattr(Decoding, "step", starved)
    assert run(e, trials) == want
    assert e.slots == 2


def test_out_of_memory_with_one_slot_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def starved(self: Decoding) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(Decoding, "step", starved)
    with pytest.raises(UserError, match="single slot"):
        run(engine(folder), [trial("a")])


def test_hooks_are_gone_after_an_exception(folder: Path) -> None:
    e = engine(folder, backend="transformers")
    before = [len(m._forward_hooks) for m in e.model.modules()]

    def fails(h: Tensor) -> Tensor:
        raise ValueError("in the middle")

    with (
        pytest.raises(ValueError, match="in the middle"),
        hooked(decoder_layers(e.model), {1: fails}),
    ):
        e.model(torch.tensor([[8, 9]]))
    assert [len(m._forward_hooks) for m in e.model.modules()] == before
    run(e, [trial("a", *MIXED[0])])
    assert [len(m._forward_hooks) for m in e.model.modules()] == before


def test_resid_unit_is_the_median_norm(folder: Path) -> None:
    e = engine(folder)
    norm = e.measure_norm(1, ["one", "another question"])
    row = WEIGHTS["W_dec"][3]
    resid = Intervention("add", "sae", 3, 0.5, 1, unit="resid")
    raw = Intervention("add", "sae", 3, 0.5 * norm / float(row.norm()), 1)
    assert e.packer.strength(resid) == pytest.approx(raw.value)
    texts = [g.text for g in run(e, [trial("a", resid), trial("a", raw)])]
    assert texts[0] == texts[1]
    assert e.measure_norm(1, ["another question", "one"]) == pytest.approx(norm)


BAD = [
    (lambda: trial("a", Intervention("add", "sae", 3, 1.0, 4)), "layer 4 does not exist"),
    (lambda: trial("a", Intervention("add", "sae", 60, 1.0, 1)), "60"),
    (lambda: trial("a", Intervention("add", "sea", 3, 1.0, 1)), "did you mean 'sae'"),
    (lambda: trial("a", Intervention("clamp", "vectors", 3, 1.0, 1)), "encoder"),
    (lambda: trial("a", Intervention("add", "sae", 3, 1.0, 1, unit="resid")), "median residual"),
    (lambda: trial("a", *[Intervention("clamp", "sae", 3, v, 1) for v in (0.0, 1.0)]), "twice"),
    (lambda: trial("why " * 200), "context of 512"),
]


@pytest.mark.parametrize(("bad", "says"), BAD)
def test_bad_trials_are_refused_before_anything_runs(
    folder: Path, bad: Callable[[], Trial], says: str
) -> None:
    with pytest.raises(UserError, match=says) as caught:
        engine(folder).generate([trial("fine"), bad()])
    assert "\n" not in str(caught.value)


def test_wrong_width_and_wrong_slots(folder: Path, tmp_path: Path) -> None:
    e = engine(folder)
    with pytest.raises(UserError, match="width 20"):
        e.add_source(models.sae(tmp_path, models.sae_weights(d_model=20)))
    with pytest.raises(UserError, match="slots is 0"):
        HFEngine(e.model, e.tokenizer, name="x", slots=0)


def test_fused_only_where_it_is_exact(folder: Path) -> None:
    with pytest.raises(UserError, match="no fused decoder"):
        engine(folder, "gpt2", "fused")
    assert engine(folder, "gpt2", "auto").backend.kind == "transformers"
    assert engine(folder, "qwen2", "auto").backend.kind == "fused"


def test_templates_that_are_missing_or_refuse_a_role() -> None:
    bare = models.tokenizer(template=None)
    with pytest.raises(UserError, match="no chat template"):
        chat.encode_prompt(bare, [Message("user", "a")])
    strict = models.tokenizer(template=models.NO_SYSTEM)
    turns = (Message("system", "be kind"), Message("user", "a"))
    with pytest.raises(UserError, match="System role not supported") as caught:
        chat.encode_prompt(strict, turns)
    e = HFEngine(models.build("llama"), strict, name="strict")
    with pytest.raises(UserError, match="user message instead"):
        e.generate([replace(trial("a"), messages=turns)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "plain", "naïve — 日本語 🙂🙂 end", "a\n\n b"])
def test_spans_cover_the_text(text: str) -> None:
    tokenizer = models.tokenizer()
    ids = chat.encode_text(tokenizer, text)
    whole, spans = chat.spans(tokenizer, ids)
    assert whole == text
    assert "".join(text[a:b] for a, b in spans) == text
    for (_, end), n in zip(spans, range(1, len(ids) + 1), strict=True):
        settled = chat.decode(tokenizer, ids[:n]).rstrip("�")
        assert text[:end] == settled or n == len(ids)


def test_logits_that_are_not_finite_are_an_error(folder: Path) -> None:
    e = engine(folder)
    with pytest.raises(UserError, match=r"not finite.*sae:3 = 3e\+38"):
        run(e, [trial("fine"), trial("a", Intervention("add", "sae", 3, 3e38, 1))])


@pytest.mark.parametrize("backend", ["fused", "transformers"])
def test_two_iterators_on_one_engine(folder: Path, backend: str) -> None:
    """Drawn from in turn, each goes on where it was."""
    e = engine(folder, backend=backend, slots=2)
    trials = varied(8)
    want = {g.trial_key: g for g in e.generate(trials)}
    first, second = e.generate(trials[:4]), e.generate(trials[4:])
    found = {}
    for _ in range(4):
        for one in (next(first), next(second)):
            found[one.trial_key] = one
    assert found == want


def test_an_abandoned_iterator_leaves_no_hook(folder: Path) -> None:
    e = engine(folder, backend="transformers", slots=2)
    before = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in e.model.modules()]
    iterator = e.generate(varied(6))
    next(iterator)
    del iterator
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in e.model.modules()] == before
    want = run(engine(folder, backend="transformers"), varied(6))
    assert run(e, varied(6)) == want


def test_no_trials_give_nothing(folder: Path) -> None:
    assert list(engine(folder).generate([])) == []
    assert engine(folder).read([], source="sae", layer=1) == []


@pytest.mark.parametrize("tokens", [0, -1])
def test_a_budget_below_one_token_is_refused(tokens: int) -> None:
    with pytest.raises(UserError, match="max_new_tokens"):
        Sampling(max_new_tokens=tokens)


@pytest.mark.parametrize("backend", ["fused", "transformers"])
@pytest.mark.parametrize("start", [0, 2, 3, 4, 40])
def test_positions_from_n_count_the_prefill(folder: Path, backend: str, start: int) -> None:
    """A prefill of three tokens: `from:N` begins inside it, at its end, after it, or never."""
    e = engine(folder, backend=backend)
    push = Intervention("add", "sae", 3, 6.0, 1, positions=f"from:{start}")
    t = trial("how far", push, prefill="abc")
    [g] = run(e, [t])
    first = len(g.prompt_ids) - 3
    assert list(g.token_ids) == reference(e.model, g.prompt_ids, t, full_edit(t, first))
