"""Each way of the published code against an independent computation; the protocol that tries them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import fake_bench
import models
import numpy as np
import pytest
import torch
from runs import small
from test_engine import GREEDY, WEIGHTS, engine, run, trial
from torch import Tensor, nn

from steerback import presets, protocols
from steerback.config import PublishedConfig
from steerback.dry.model import byte_tokenizer
from steerback.engine.base import Pair
from steerback.engine.hf import HFEngine
from steerback.engine.variants import HEADER
from steerback.errors import UserError
from steerback.protocols.fidelity import PROTOCOL, Settings
from steerback.records import Records
from steerback.run import run as run_config
from steerback.store import Store
from steerback.switches import ABOUT, IN_ENGINE, SWITCHES
from steerback.types import Attempt, Generation, Intervention, Trial, Verdict

HALVED, MLP_SITE, HEADERS = ("halved-last-mlp",), ("mlp-site",), ("double-header",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("saes")


def ways(variant: Sequence[str], *interventions: Intervention) -> list[Trial]:
    return [replace(trial(q, *interventions), variant=tuple(variant)) for q in ("why", "how so?")]


def greedy(
    model: nn.Module, prompt: Sequence[int], logits: Callable[[Tensor], Tensor], n: int
) -> list[int]:
    """n tokens by hand, the repetition penalty written out. logits: ids [1, length] -> [vocab]"""
    ids = list(prompt)
    for _ in range(n):
        with torch.no_grad():
            scores = logits(torch.tensor([ids])).clone()
        for token in set(ids):
            s = scores[token]
            scores[token] = (
                s / GREEDY.repetition_penalty if s > 0 else s * GREEDY.repetition_penalty
            )
        ids.append(int(scores.argmax()))
        if ids[-1] == model.config.eos_token_id:
            break
    return ids[len(prompt) :]


# --- logits = head(norm(2 r + mlp)) --------------------------------------------------------------


def doubled_residual(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The published computation: the stream before the last MLP, r, is added once more."""

    def logits(ids: Tensor) -> Tensor:
        seen: dict[str, Tensor] = {}
        last = model.model.layers[-1]
        handles = [
            last.post_attention_layernorm.register_forward_pre_hook(
                lambda _m, args: seen.__setitem__("r", args[0])
            ),
            last.mlp.register_forward_hook(lambda _m, _a, out: seen.__setitem__("mlp", out)),
        ]
        model(ids, use_cache=False)
        for handle in handles:
            handle.remove()
        stream = 2 * seen["r"] + seen["mlp"]
        return model.lm_head(model.model.norm(stream))[0, -1]

    return logits


@pytest.mark.parametrize("backend", ["fused", "transformers"])
@pytest.mark.parametrize("kind", ["llama", "llama3"])
def test_halved_last_mlp_is_head_of_norm_of_2r_plus_mlp(
    folder: Path, kind: str, backend: str
) -> None:
    made = engine(folder, kind, backend)
    before = {k: v.clone() for k, v in made.model.state_dict().items()}
    asked = ways(HALVED)
    got = run(made, [*asked, *ways(())])
    for t, g in zip(asked, got, strict=False):
        want = greedy(
            made.model, g.prompt_ids, doubled_residual(made.model), t.sampling.max_new_tokens
        )
        assert list(g.token_ids) == want
    assert [g.token_ids for g in got[:2]] != [g.token_ids for g in got[2:]]
    assert [g.token_ids for g in got[2:]] == [g.token_ids for g in run(made, ways(()))]
    for name, value in made.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_an_mlp_that_cannot_be_halved_in_place_is_halved_by_a_hook(folder: Path) -> None:
    plain = run(engine(folder, "llama"), ways(HALVED))
    other = engine(folder, "llama", "transformers")
    down = other.model.model.layers[-1].mlp.down_proj
    down.bias = nn.Parameter(torch.zeros(down.out_features))
    assert [g.token_ids for g in run(other, ways(HALVED))] == [g.token_ids for g in plain]
    assert not other.model.model.layers[-1].mlp._forward_hooks


def test_gemma_has_no_such_sum(folder: Path) -> None:
    with pytest.raises(UserError, match="'halved-last-mlp': in Gemma2ForCausalLM"):
        run(engine(folder, "gemma2"), ways(HALVED))


# --- a second header -----------------------------------------------------------------------------


def test_the_prompt_ends_in_a_second_header_without_newlines() -> None:
    tokenizer = byte_tokenizer("llama")
    made = HFEngine(models.build("llama"), tokenizer, name="llama", slots=3)
    once, twice = (run(made, ways(v))[0].prompt_ids for v in ((), HEADERS))
    assert twice[: len(once)] == once
    assert tokenizer.decode(twice) == tokenizer.decode(once) + HEADER
    assert twice[len(once)] == tokenizer.bos_token_id
    assert not tokenizer.decode(twice).endswith("\n")


def test_other_chats_have_no_header(folder: Path) -> None:
    with pytest.raises(UserError, match="'double-header': this model's chat has no Llama 3"):
        run(engine(folder, "llama"), ways(HEADERS))
    with pytest.raises(UserError, match="unknown variant 'mlp-sight'; did you mean 'mlp-site'"):
        run(engine(folder, "llama"), ways(["mlp-sight"]))


# --- the MLP's output as the site ------------------------------------------------------------------


def mlp_module(model: nn.Module, layer: int) -> nn.Module:
    found = model.model.layers[layer]
    return getattr(found, "post_feedforward_layernorm", found.mlp)


@pytest.mark.parametrize("kind", ["gemma2", "llama"])
def test_readouts_are_of_what_the_mlp_adds(folder: Path, kind: str) -> None:
    made = engine(folder, kind)
    made.variant = MLP_SITE
    pairs = [Pair((2, 40, 41), tuple(range(50, 50 + n))) for n in (1, 3, 17)]
    got = made.read(pairs, source="sae", layer=1, pool="none")
    for pair, reading in zip(pairs, got, strict=True):
        seen: list[Tensor] = []
        handle = mlp_module(made.model, 1).register_forward_hook(
            lambda _m, _a, out, seen=seen: seen.append(out)
        )
        with torch.no_grad():
            made.model(torch.tensor([pair.prompt_ids + pair.response_ids]))
        handle.remove()
        want = models.encode(WEIGHTS, seen[0][0, len(pair.prompt_ids) :])
        torch.testing.assert_close(torch.from_numpy(reading.values), want, rtol=1e-4, atol=1e-4)
    made.variant = ()
    residual = made.read(pairs, source="sae", layer=1, pool="none")
    assert any(not np.allclose(a.values, b.values) for a, b in zip(got, residual, strict=True))


@pytest.mark.parametrize("kind", ["gemma2", "llama"])
def test_adding_is_unaffected_and_clamping_reads_the_mlp(folder: Path, kind: str) -> None:
    made = engine(folder, kind)
    add = Intervention("add", "sae", 3, 4.0, 1, positions="all")
    texts = [[g.token_ids for g in run(made, ways(v, add))] for v in (MLP_SITE, ())]
    assert texts[0] == texts[1]

    clamp = Intervention("clamp", "sae", 5, 2.5, 1, positions="all")
    W = WEIGHTS

    def clamped(_module: nn.Module, _inputs: object, out: Tensor) -> Tensor:
        acts = models.encode(W, out)
        return out + 4.0 * W["W_dec"][3] + (2.5 - acts[..., 5:6]) * W["W_dec"][5]

    asked = ways(MLP_SITE, add, clamp)
    for t, g in zip(asked, run(made, asked), strict=True):
        handle = mlp_module(made.model, 1).register_forward_hook(clamped)
        want = greedy(
            made.model,
            g.prompt_ids,
            lambda ids: made.model(ids, use_cache=False).logits[0, -1],
            t.sampling.max_new_tokens,
        )
        handle.remove()
        assert list(g.token_ids) == want
    assert [g.token_ids for g in run(made, ways((), add, clamp))] != [
        g.token_ids for g in run(made, asked)
    ]


def test_variants_that_stand_together_do_not_mix(folder: Path) -> None:
    made = engine(folder, "llama")
    every = [t for v in ((), HALVED, MLP_SITE, (*HALVED, *MLP_SITE)) for t in ways(v)]
    alone = [run(made, [t])[0].token_ids for t in every]
    assert [g.token_ids for g in run(made, every)] == alone
    assert len({t.key for t in every}) == len(every)


# --- the configuration ---------------------------------------------------------------------------


def test_profiles_put_switches_in_force() -> None:
    clean = presets.from_preset("llama-3.3-70b-instruct")
    assert (clean.in_force, clean.variant, clean.positions) == ((), (), "generated")
    assert clean.drawing().repetition_penalty == 1.1
    code = presets.from_preset("llama-3.3-70b-instruct", profile="published-code")
    assert set(code.in_force) == set(SWITCHES) - {"mlp-site"}
    assert code.variant == ("double-header", "halved-last-mlp")
    assert (code.positions, code.relevance) == ("all", "zero")
    assert code.drawing().repetition_penalty == 1.2
    assert code.drawing().max_new_tokens == 512
    assert code.drawing(calibrating=True).max_new_tokens == 256
    gemma = presets.from_preset("gemma-2-9b-it", switches=["mlp-site"])
    assert (gemma.in_force, gemma.positions) == (MLP_SITE, "generated")
    assert presets.from_preset("llama-3.1-8b-instruct", switches=["code-penalty"]).drawing() == (
        replace(clean.drawing(), repetition_penalty=1.15)
    )


def test_every_switch_is_explained_and_had_by_a_model() -> None:
    assert set(ABOUT) == set(SWITCHES)
    every = [presets.from_preset(n) for n in presets.presets()]
    assert {s for p in every for s in p.published.switches} == set(SWITCHES)
    assert set(IN_ENGINE) < set(SWITCHES)


def test_a_run_in_the_published_ways(tmp_path: Path) -> None:
    made = small(
        tmp_path / "run",
        profile="published-code",
        switches=["halved-last-mlp", "mlp-site", "code-penalty"],
        published={"repetition_penalty": 1.3},
        directions={"count": 2, "scope": "pair"},
    )
    run_config(made)
    with Store.open(tmp_path / "run", mode="ro") as store:
        for protocol, longest in (("esr", 48), ("baseline", 48), ("calibration", 24)):
            trials = [t for t, _ in store.trials(protocol=protocol)]
            assert trials
            assert {t.sampling.max_new_tokens for t in trials} == {longest}
            assert {t.sampling.repetition_penalty for t in trials} == {1.3}
            assert {t.variant for t in trials} == {(*HALVED, *MLP_SITE)}
            assert {i.positions for t in trials for i in t.interventions} <= {"all"}
        [*_, rule, _] = store.get_artifact("funnel")
    assert rule["rule"].endswith("(zero)")


# --- the protocol --------------------------------------------------------------------------------


def test_fidelity_tries_each_way_alone_and_together(tmp_path: Path) -> None:
    amount = {"prompts_per_direction": 2}
    tried = ["halved-last-mlp", "steered-prompt", "code-penalty", "half-calibration"]
    made = small(
        tmp_path / "run",
        protocols=["fidelity"],
        published={"repetition_penalty": 1.3},
        directions={"count": 3},
        settings={
            "fidelity": {**amount, "switches": [*tried, "zero-relevance"]},
        },
    )
    made = made.model_copy(update={"settings": {**made.settings, "esr": amount}})
    found = run_config(made)["fidelity"]
    assert {s.arm for s in found.summaries} <= {*tried, "all together"}
    with Store.open(tmp_path / "run", mode="ro") as store:
        finding = store.get_artifact("found/fidelity")["found"]
        by_arm = {s: [t for t, _ in store.trials(protocol="fidelity", arm=s)] for s in tried}
        steered = {(t.question, t.seed): t for t, _ in store.trials(protocol="esr")}
        short = [t for t, _ in store.trials(protocol="calibration") if t.arm.startswith("half")]
    assert {t.sampling.max_new_tokens for t in short} == {24}
    for switch in tried:
        for t in by_arm[switch]:
            twin = steered[t.question, t.seed]
            changed = {
                "variant": t.variant != twin.variant,
                "penalty": t.sampling != twin.sampling,
                "positions": t.steered_by.positions != twin.steered_by.positions,
            }
            only = {
                "halved-last-mlp": "variant",
                "steered-prompt": "positions",
                "code-penalty": "penalty",
            }.get(switch)
            assert {k for k, yes in changed.items() if yes} == ({only} if only else set())
            if switch == "half-calibration":
                assert t.steered_by.value == finding["half"][f"sae:{t.steered_by.index}"]
            else:
                assert t.steered_by.value == twin.steered_by.value
    titles = [s.title for s in found.sheets]
    assert titles == [
        "Which ways of the published code move the rate",
        "zero-relevance: latents that fire on no prompt",
    ]


RATES = {"steered": 0.1, "steered-prompt": 0.6, "code-penalty": 0.1}


def planted(store: Store, trials: Sequence[Trial]) -> None:
    """Trials that restart at their arm's rate; the rest of each is as its twin's."""
    verdicts = []
    for t in trials:
        luck = np.random.default_rng(t.seed).random()
        multi = luck < RATES[t.arm]
        attempts = (Attempt(0, 1, 10.0), Attempt(1, 2, 90.0))[: 1 + multi]
        verdicts.append(Verdict(t.key, "planted", attempts, "ok"))
    store.add([(t, Generation(t.key, (1,), (2,), "xy", "eos")) for t in trials])
    store.add_verdicts(verdicts)


def test_what_moves_the_rate_is_told_from_what_does_not(tmp_path: Path) -> None:
    from steerback.protocols.esr import PROTOCOL as ESR
    from steerback.protocols.esr import Settings as EsrSettings

    switches = ["steered-prompt", "code-penalty", "zero-relevance"]
    active = [f"sae:{k}" for k in range(20, 28)]
    finding = {
        "switches": switches,
        "together": False,
        "penalty": 1.2,
        "half": {},
        "active": active,
    }
    inputs = fake_bench.inputs(found={"fidelity": finding})
    with Store.open(tmp_path / "run") as store:
        planted(store, ESR.plan(inputs, EsrSettings()))
        planted(store, PROTOCOL.plan(inputs, Settings()))
        store.put_artifact("found/fidelity", {"settings": {}, "found": finding})
        found = PROTOCOL.analyse(Records(store, "planted"))
    moved, relevance = found.sheets
    said = {(row[0], row[1]): (row[5], row[6]) for row in moved.rows}
    for measure in ("multi_attempt", "esr"):
        assert said["steered-prompt", measure] == (pytest.approx(0, abs=0.01), "moves it")
        assert said["code-penalty", measure] == (1.0, "no sign that it does")
    assert moved.notes[0].startswith("steered-prompt: the tokens of the prompt")
    [(name, kept, left_out, p), _] = relevance.rows
    assert name == "multi_attempt"
    assert (kept.clusters, left_out.clusters) == (len(inputs.directions) - 8, 8)
    assert 0 <= p <= 1


def test_ways_that_the_model_does_not_have(tmp_path: Path) -> None:
    class Bench:
        published = PublishedConfig(switches=["double-header", "steered-prompt"])
        in_force = ()

        def check_variant(self, variant: Sequence[str]) -> None:
            if variant:
                raise UserError("no such header")

    inputs = fake_bench.inputs()
    found = PROTOCOL.before(Bench(), inputs, Settings())
    assert (found["switches"], found["together"]) == (["steered-prompt"], False)
    with pytest.raises(UserError, match="no such header"):
        PROTOCOL.before(Bench(), inputs, Settings(switches=["double-header"]))
    Bench.in_force = ("steered-prompt",)
    assert PROTOCOL.before(Bench(), inputs, Settings())["switches"] == []
    with pytest.raises(UserError, match="'steered-prompt' is in force in the whole run"):
        PROTOCOL.before(Bench(), inputs, Settings(switches=["steered-prompt"]))
    assert set(protocols.registry()) >= {"fidelity"}
