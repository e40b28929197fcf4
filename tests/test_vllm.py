"""The vLLM engine against the in-process one. Needs vLLM in the environment: `make test-vllm`."""

from __future__ import annotations

import importlib.util
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import models
import numpy as np
import pytest
import torch

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed here; `make test-vllm` runs these", allow_module_level=True)

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

from steerback import organism
from steerback.engine.base import Pair, Pool, Watch
from steerback.engine.hf import HFEngine
from steerback.engine.places import Place
from steerback.engine.vllm.engine import VLLMEngine
from steerback.engine.vllm.launch import Options
from steerback.errors import UserError
from steerback.sae import load_sae
from steerback.types import Generation, Intervention, Message, Sampling, Trial

KINDS = ("organism", "llama", "gemma2", "mistral", "qwen2", "qwen3")
CACHE = 64 * 2**20
WIDTH = 128


class Subject(NamedTuple):
    """A model folder, an SAE's, the steered layer, questions, and how hard to steer."""

    model: Path
    sae: Path
    layer: int
    questions: list[str]
    strength: float


def subject(kind: str, folder: Path) -> Subject:
    if kind == "organism":
        asked = [q.text for q in organism.questions()[:16]]
        place = organism.path("resister"), organism.sae_path("resister")
        return Subject(*place, organism.steer_layer("resister"), asked, 8.0)
    with_heads_of_32(models.build(kind)).save_pretrained(folder)
    models.tokenizer().save_pretrained(folder)
    models.sae(folder / "sae", models.sae_weights(d_model=WIDTH))
    asked = [f"what is {i}{'x' * (i * 3)}?" for i in range(16)]
    return Subject(folder, folder / "sae", 1, asked, 3.0)


def with_heads_of_32(model: Any) -> Any:
    """The same kind of model with heads as vLLM's attention on processors wants them."""
    c = model.config
    c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim = WIDTH, 4, 2, 32
    torch.manual_seed(0)
    other = type(model)(model.config).eval()
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return other


def in_process(s: Subject) -> HFEngine:
    sae = load_sae(s.sae, name="sae")
    return HFEngine.load(s.model, name="m", sources={"sae": sae}, device="cpu", slots=8)


def in_vllm(s: Subject, *, eager: bool = True, tensor: int = 1, **extra: Any) -> VLLMEngine:
    options = Options(
        tensor_parallel=tensor, eager=eager, extra={"kv_cache_memory_bytes": CACHE, **extra}
    )
    return VLLMEngine.load(
        s.model,
        name="m",
        places={"sae": Place("sae", str(s.sae))},
        layers=[s.layer, s.layer + 1],
        slots=8,
        device="cpu",
        options=options,
    )


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Both engines on one model; prompts are read 32 tokens at a time."""
    s = subject(request.param, tmp_path_factory.mktemp(request.param))
    theirs = in_vllm(s, max_num_batched_tokens=32)
    yield s, in_process(s), theirs
    theirs.close()


def mixed(s: Subject, n: int, n_latents: int, **sampling: Any) -> list[Trial]:
    """Trials of eight kinds in turn: none, add, clamps, both, two layers, prompt too, late, all."""
    rng = random.Random(0)

    def edits(kind: int) -> list[Intervention]:
        ks = iter(rng.sample(range(n_latents), 4))

        def add(where: str = "generated") -> Intervention:
            value = s.strength * rng.random()
            return Intervention("add", "sae", next(ks), value, s.layer, positions=where)

        def clamp(layer: int = s.layer, how: str = "clamp") -> Intervention:
            return Intervention(how, "sae", next(ks), rng.choice([0.0, 2.0]), layer)  # type: ignore[arg-type]

        ways: list[Callable[[], list[Intervention]]] = [
            list,
            lambda: [add()],
            lambda: [clamp(), clamp(), clamp()],
            lambda: [add(), clamp()],
            lambda: [add(), clamp(s.layer + 1)],
            lambda: [add("all")],
            lambda: [add("from:5"), add()],
            lambda: [clamp(), add(), clamp(how="clamp-after")],
        ]
        return ways[kind]()

    out = []
    for i in range(n):
        question = s.questions[i % len(s.questions)]
        out.append(
            Trial(
                "test",
                str(i),
                "m",
                question,
                (Message("user", question),),
                Sampling(max_new_tokens=8 + 5 * (i % 7), **sampling),
                seed=i,
                interventions=tuple(edits(i % 8)),
                prefill="" if i % 3 else "Well",
            )
        )
    return out


def made(engine: Any, trials: Sequence[Trial], **options: Any) -> list[Generation]:
    found = {g.trial_key: g for g in engine.generate(trials, **options)}
    return [found[t.key] for t in trials]


def said(generations: Sequence[Generation]) -> list[tuple[Any, ...]]:
    return [(g.token_ids, g.text, g.finish_reason) for g in generations]


def check_same(theirs: VLLMEngine, ours: HFEngine, s: Subject, n: int = 64) -> None:
    """Greedy trials say the same. So do drawn ones, but for a uniform that falls between two logits'
    worth of rounding (seen in 1 trial of 32: 6e-7 from a boundary, logits 1e-5 apart)."""
    greedy = mixed(s, n, 60, temperature=0.0)
    assert said(made(theirs, greedy)) == said(made(ours, greedy))
    drawn = mixed(s, n, 60, temperature=0.7, top_k=20, top_p=0.9)
    pairs = zip(said(made(theirs, drawn)), said(made(ours, drawn)), strict=True)
    assert sum(a != b for a, b in pairs) <= n // 32


@pytest.mark.parametrize("pair", KINDS, indirect=True)
def test_64_mixed_trials_say_the_same(pair: tuple[Subject, HFEngine, VLLMEngine]) -> None:
    s, ours, theirs = pair
    check_same(theirs, ours, s)


@pytest.mark.parametrize("pair", KINDS, indirect=True)
def test_watch_and_readings_agree(pair: tuple[Subject, HFEngine, VLLMEngine]) -> None:
    s, ours, theirs = pair
    trials = mixed(s, 16, 60, temperature=0.0)
    watch = Watch("sae", s.layer + 1, (1, 2, 3), (5,))
    want = made(ours, trials, watch=watch)
    for a, b in zip(want, made(theirs, trials, watch=watch), strict=True):
        assert a.token_ids == b.token_ids
        assert a.trace is not None
        assert b.trace is not None
        assert a.trace.latents == b.trace.latents
        np.testing.assert_allclose(b.trace.values, a.trace.values, rtol=1e-4, atol=1e-3)
    pairs = [
        Pair(g.prompt_ids, g.token_ids, t.interventions, skip=i % 3)
        for i, (g, t) in enumerate(zip(want, trials, strict=True))
    ]
    pools: tuple[Pool, ...] = ("none", "max", "mean")
    for pool in pools:
        for latents in (None, [3, 1, 2]):
            how: dict[str, Any] = {"source": "sae", "layer": s.layer + 1, "latents": latents}
            one = ours.read(pairs, pool=pool, **how)
            two = theirs.read(pairs, pool=pool, **how)
            for x, y in zip(one, two, strict=True):
                np.testing.assert_allclose(y.values, x.values, rtol=1e-4, atol=1e-3)
    for h, g in zip(ours.streams(pairs, s.layer), theirs.streams(pairs, s.layer), strict=True):
        np.testing.assert_allclose(g.numpy(), h.numpy(), rtol=1e-4, atol=1e-3)
    assert theirs.measure_norm(s.layer, s.questions) == pytest.approx(
        ours.measure_norm(s.layer, s.questions), rel=1e-5
    )


def test_preempted_trials_say_the_same(tmp_path: Path) -> None:
    s = subject("llama", tmp_path)
    small = {"num_gpu_blocks_override": 6, "block_size": 32, "max_model_len": 160}
    theirs = in_vllm(s, disable_log_stats=False, **small)
    check_same(theirs, in_process(s), s, 32)
    preempted = [m.value for m in theirs._llm.get_metrics() if m.name == "vllm:num_preemptions"]
    theirs.close()
    assert sum(preempted) > 0


def test_compiled_model_keeps_the_op(tmp_path: Path) -> None:
    s = subject("llama", tmp_path)
    theirs = in_vllm(s, eager=False)
    check_same(theirs, in_process(s), s)
    theirs.close()


def test_two_ranks_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    s = subject("llama", tmp_path)
    theirs = in_vllm(s, tensor=2)
    check_same(theirs, in_process(s), s)
    theirs.close()


def test_two_engines_in_one_process_do_not_mix(tmp_path: Path) -> None:
    s = subject("llama", tmp_path)
    first, second = in_vllm(s), in_vllm(s)
    trials = mixed(s, 16, 60, temperature=0.0)
    want = said(made(in_process(s), trials))
    assert said(made(first, trials)) == want
    assert said(made(second, trials)) == want
    turns = [e.generate(trials) for e in (first, second)]
    got: list[dict[str, Generation]] = [{}, {}]
    for pair in zip(*turns, strict=True):
        for mine, generation in zip(got, pair, strict=True):
            mine[generation.trial_key] = generation
    for mine in got:
        assert said([mine[t.key] for t in trials]) == want
    first.close()
    second.close()


def test_rows_do_not_pile_up(tmp_path: Path) -> None:
    s = subject("llama", tmp_path)
    theirs = in_vllm(s)
    made(theirs, mixed(s, 64, 60, temperature=0.7))
    runner = theirs._llm.llm_engine.model_executor.driver_worker.worker.model_runner
    made(theirs, mixed(s, 1, 60, temperature=0.7))
    steering = runner.steerback
    theirs.close()
    assert len(steering.seats) <= 1
    assert len(steering.rows) <= 64
    assert not steering.found


def test_what_cannot_be_run_is_said(tmp_path: Path) -> None:
    s = subject("llama", tmp_path)
    with pytest.raises(UserError, match="layer 9 does not exist"):
        VLLMEngine.load(s.model, places={}, layers=[9], slots=2)
    models.build("gpt2").save_pretrained(tmp_path / "gpt2")
    models.tokenizer().save_pretrained(tmp_path / "gpt2")
    with pytest.raises(UserError, match="GPT2LMHeadModel was not compared"):
        in_vllm(s._replace(model=tmp_path / "gpt2"))
    theirs = in_vllm(s)
    one = mixed(s, 2, 60)[1]
    far = Intervention("add", "sae", 1, 1.0, 3)
    with pytest.raises(UserError, match="layers 1, 2, not 3"):
        theirs.check(Trial(**{**vars_of(one), "interventions": (far,)}))
    huge = Intervention("add", "sae", 1, 1e38, 1)
    with pytest.raises(UserError, match="not finite"):
        made(theirs, [Trial(**{**vars_of(one), "interventions": (huge, huge)})])
    bad = theirs._llm.llm_engine
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    for extra in ({"steerbak": "{}"}, {"steerback": json.dumps({"first": 1})}):
        with pytest.raises(VLLMValidationError, match="steerback"):
            bad.add_request("x", {"prompt_token_ids": [3]}, SamplingParams(extra_args=extra))
    assert said(made(theirs, [one])) == said(made(in_process(s), [one]))
    theirs.close()


def vars_of(trial: Trial) -> dict[str, Any]:
    return {name: getattr(trial, name) for name in Trial.__dataclass_fields__}


def test_protocols_run_end_to_end_and_a_run_may_change_engines(tmp_path: Path) -> None:
    from runs import small

    from steerback.run import run
    from steerback.store import Store
    from steerback.ui import Ui

    amount = {"prompts_per_direction": 3}
    what = {
        "protocols": ["baseline", "esr", "ablation", "traces"],
        "settings": {"baseline": amount, "esr": amount},
    }
    ours = run(small(tmp_path / "ours", **what))
    said_so: list[str] = []

    class Heard(Ui):
        def say(self, line: str) -> None:
            said_so.append(line)

    elsewhere = {"kind": "vllm", "eager": True, "memory": 0.1}
    theirs = run(small(tmp_path / "theirs", engine=elsewhere, **what), Heard())
    with (
        Store.open(tmp_path / "ours", mode="ro") as a,
        Store.open(tmp_path / "theirs", mode="ro") as b,
    ):
        one = {t.key: g.token_ids for t, g in a.trials()}
        two = {t.key: g.token_ids for t, g in b.trials()}
        assert b.sessions()[0].facts["engine"].startswith("vllm")
    print(f"{len(one)} and {len(two)} trials, {len(one.keys() & two.keys())} the same trial,")
    print(f"{sum(one[k] == two[k] for k in one.keys() & two.keys())} of those the same text")
    for name in ("baseline", "esr"):
        x, y = ours[name].summaries[0].esr, theirs[name].summaries[0].esr
        print(name, x, y)
        assert x.low <= y.rate <= x.high or x.rate == y.rate
    before = len(said_so)
    run(small(tmp_path / "theirs", **what), Heard())
    assert any("it goes on with" in line for line in said_so[before:])
