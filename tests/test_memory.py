"""Estimated memory against what a loaded model holds; quantised and spread models."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import models
import pytest
import torch
from test_engine import run, trial
from transformers import AutoConfig, AutoModelForCausalLM

from steerback.architectures import architecture
from steerback.cli import main
from steerback.dry.model import write_model
from steerback.engine.hf import HFEngine
from steerback.engine.loading import placement
from steerback.errors import UserError
from steerback.memory import GIB, Machine, Shape, estimate
from steerback.overview import entries
from steerback.presets import from_preset
from steerback.types import Intervention, Sampling

SLOTS, TOKENS, LATENTS = 24, 160, 60
REPOSITORIES = (
    "meta-llama/Llama-3.3-70B-Instruct",
    "meta-llama/Llama-3.1-8B-Instruct",
    "google/gemma-2-2b-it",
    "google/gemma-2-9b-it",
    "google/gemma-2-27b-it",
)


def live() -> dict[int, int]:
    """Bytes of every tensor storage that is alive in this process, by its address."""
    gc.collect()
    tensors = [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]
    return {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in tensors)}


@pytest.mark.parametrize("repository", REPOSITORIES)
def test_parameters_are_those_of_the_model(repository: str) -> None:
    fields = dict(architecture(repository) or {})
    kind = fields.pop("model_type")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **fields))
    counted = sum(p.numel() for p in model.parameters())
    shape = Shape.of({"model_type": kind, **fields})
    assert shape.parameters == counted
    inside = model.model.layers.parameters()
    assert shape.matrices == sum(p.numel() for p in inside if p.dim() == 2)
    linears = [m for m in model.model.layers.modules() if isinstance(m, torch.nn.Linear)]
    assert shape.matrix_rows == sum(m.out_features for m in linears)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "mistral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_estimate_is_within_a_tenth_of_what_is_held(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that a run keeps: weights, cache, and the state of its rows, while trials are generated."""
    monkeypatch.setattr("steerback.engine.probe._disagreement", lambda *_: 0.0)  # noise in bfloat16
    before = live()
    engine = HFEngine(
        models.build(kind).to(dtype), models.tokenizer(), name=kind, slots=SLOTS, backend="fused"
    )
    question = "x" * (TOKENS - 24 - len(engine.encode_prompt(trial("").messages)))
    trials = [trial(question, seed=n, sampling=Sampling(max_new_tokens=24)) for n in range(SLOTS)]
    held: list[int] = []

    def measure(_trial: object, _token: int) -> None:
        if not held:
            held.append(sum(n for at, n in live().items() if before.get(at) != n))

    run(engine, trials, listener=measure)
    shape = Shape.of(engine.model.config.to_dict())
    name = str(dtype).removeprefix("torch.")
    needs = estimate(
        shape,
        dtype=name,
        slots=SLOTS,
        tokens=TOKENS,
        directions=0,
        latents=LATENTS,
        block=engine.backend.block.rows,
    )
    assert needs.weights + needs.cache == pytest.approx(held[0], rel=0.1)
    rows = -(-SLOTS // engine.backend.block.rows) * engine.backend.block.rows
    cache = engine.backend.allocate(rows, TOKENS + 1)
    assert needs.cache == sum(t.nbytes for pair in cache.layers for t in pair)
    assert needs.weights == pytest.approx(
        sum(p.nbytes for p in engine.model.parameters()), rel=0.01
    )


def test_the_rows_of_the_sae_are_those_in_use(tmp_path: Path) -> None:
    engine = HFEngine(
        models.build("llama"),
        models.tokenizer(),
        name="llama",
        slots=4,
        sources={"sae": models.sae(tmp_path, models.sae_weights())},
    )
    steered = [trial("why", Intervention("add", "sae", k, 2.0, 1)) for k in range(17)]
    run(engine, steered)
    shape = Shape.of(engine.model.config.to_dict())
    needs = estimate(shape, dtype="float32", slots=4, tokens=64, directions=17, latents=LATENTS)
    assert needs.directions == sum(d.nbytes for d in engine.packer._directions.values())
    reader = engine.sources["sae"].reader(None)
    cells = 8 * 64 * LATENTS
    assert needs.encoder - cells == pytest.approx(reader.W.nbytes, rel=0.01)


def test_the_larger_of_step_and_encoder_counts() -> None:
    shape = Shape.of(architecture("google/gemma-2-2b-it") or {})
    few = estimate(shape, dtype="bfloat16", slots=1, tokens=64, directions=1, latents=10**6)
    many = estimate(shape, dtype="bfloat16", slots=999, tokens=64, directions=1, latents=1)
    for needs, work in ((few, few.encoder), (many, many.step)):
        assert needs.total == needs.weights + needs.cache + needs.directions + work
        assert work == max(needs.step, needs.encoder)


def test_the_70b_fits_one_large_card_only_when_quantised() -> None:
    """The published number of slots, then fewer: 8-bit weights leave room for some on 80 GiB."""
    card = Machine("one card", 79.6 * GIB)
    found = {n: next(e for e in entries(n) if "70b" in e.name) for n in (32, 8)}
    assert found[8].fits(card) == "int8"
    assert found[32].fits(card) == "int4"
    assert found[8].fits(Machine("two cards", 2 * 79.6 * GIB)) == "none"
    assert found[8].fits(Machine("a small card", 24 * GIB)) is None
    assert 130 < found[8].needs["none"].weights / GIB < 133


def test_models_are_listed_with_memory_and_gates(capsys: pytest.CaptureFixture[str]) -> None:
    main(["models", "--json", "--slots", "3"])
    listed = {e["name"]: e for e in json.loads(capsys.readouterr().out)}
    small = listed["gemma-2-2b-it"]
    assert small["slots"] == 3
    assert "Gemma Terms of Use" in small["gate"]
    assert small["needs"]["none"]["total"] > small["needs"]["int8"]["total"]
    assert listed["organism-resister"]["fits"] == "none"
    assert listed["organism-resister"]["gate"] == ""
    main(["models"])
    shown = " ".join(capsys.readouterr().out.split())
    for name in listed:
        assert name in shown
    assert "HF_TOKEN and the Llama 3.3 Community License" in shown


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    fields = architecture("meta-llama/Llama-3.1-8B-Instruct") or {}
    write_model({**fields, "num_hidden_layers": 3}, folder, 64)
    return folder


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"quantize": "int8"}, "model.quantize = 'int8' needs the torchao package"),
        ({"quantize": "fp8"}, "model.quantize = 'fp8' needs the torchao package"),
        ({"quantize": "int4"}, "model.quantize = 'int4' needs the bitsandbytes package"),
        ({"device_map": "auto"}, "model.device_map = 'auto' needs the accelerate package"),
    ],
)
def test_a_package_that_is_missing_is_one_line(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, str], says: str
) -> None:
    monkeypatch.setattr("steerback.engine.loading.find_spec", lambda name: None)
    with pytest.raises(UserError, match=says) as caught:
        HFEngine.load(tiny, **asked)
    assert str(caught.value).endswith("pip install 'steerback[quantize]'")


def test_nothing_asked_for_is_nothing_passed() -> None:
    assert placement("none", None, torch.float32, "cpu") == {}


def test_a_model_that_is_partly_on_disk_says_the_same(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spread over two places, with edits in the one and layers in the other."""
    pytest.importorskip("accelerate")
    whole = HFEngine.load(tiny, name="t", device="cpu", slots=3, backend="transformers")
    places = {
        "model.embed_tokens": "cpu",
        "model.layers.0": "cpu",
        "model.layers.1": "disk",
        "model.layers.2": "cpu",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": "cpu",
    }

    def spread(*_: object) -> dict[str, object]:
        return {"device_map": places, "offload_folder": str(tmp_path)}

    monkeypatch.setattr("steerback.engine.hf.placement", spread)
    parts = HFEngine.load(tiny, name="t", device="cpu", slots=3)
    assert parts.backend.kind == "transformers"
    for engine in (whole, parts):
        engine.add_source(models.sae(tmp_path / "sae", models.sae_weights(d_model=64)))
    asked = [trial(f"why {n}", Intervention("add", "sae", n, 3.0, 1), seed=n) for n in range(4)]
    assert [g.token_ids for g in run(parts, asked)] == [g.token_ids for g in run(whole, asked)]


@pytest.mark.parametrize("bits", ["int8", "fp8"])
def test_quantised_weights_steer_and_know_nothing_of_their_batch(
    tiny: Path, tmp_path: Path, bits: str
) -> None:
    pytest.importorskip("torchao")
    engine = HFEngine.load(tiny, name="t", device="cpu", slots=5, quantize=bits)
    assert engine.backend.kind == "transformers"
    engine.add_source(models.sae(tmp_path, models.sae_weights(d_model=64)))
    asked = [trial(f"why {n}", Intervention("add", "sae", n, 3.0, 1), seed=n) for n in range(5)]
    together = run(engine, asked)
    engine.slots = 2
    assert [g.token_ids for g in run(engine, asked)] == [g.token_ids for g in together]


def test_four_bits_are_nf4_at_the_models_own_dtype() -> None:
    pytest.importorskip("bitsandbytes")
    asked = placement("int4", None, torch.bfloat16, "cpu")
    config = asked["quantization_config"]
    assert (config.load_in_4bit, config.bnb_4bit_quant_type) == (True, "nf4")
    assert config.bnb_4bit_compute_dtype == torch.bfloat16
    assert asked["device_map"] == {"": "cpu"}


def test_run_takes_both_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    from steerback.presets import placed

    config = from_preset("gemma-2-2b-it")
    changed = placed(config, "int8", "auto")
    assert (changed.model.quantize, changed.model.device_map) == ("int8", "auto")
    assert placed(config, None, None) == config
    with pytest.raises(SystemExit) as leave:
        main(["run", "gemma-2-2b-it", "--quantize", "int3"])
    assert leave.value.code == 2
    assert "command line: model.quantize is 'int3'; allowed" in capsys.readouterr().err
