"""Rehearsals: a whole run through every published model's layers, names and SAE format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from steerback import presets, protocols
from steerback.architectures import architecture
from steerback.chat import encode_prompt
from steerback.config import RunConfig
from steerback.dry import rehearsal
from steerback.dry.model import byte_tokenizer, reduced, write_model
from steerback.dry.sae import write_sae
from steerback.errors import UserError
from steerback.run import run
from steerback.sae import load_sae
from steerback.store import Store
from steerback.types import Message

PUBLISHED = (
    "llama-3.3-70b-instruct",
    "llama-3.1-8b-instruct",
    "gemma-2-2b-it",
    "gemma-2-9b-it",
    "gemma-2-27b-it",
)
LAYERS = dict(zip(PUBLISHED, (80, 32, 26, 42, 46), strict=True))


def preset(name: str, folder: Path, **values: Any) -> RunConfig:
    questions = folder / "questions.txt"
    questions.write_text("Why is it so?\nHow?\nWhat for?\nSince when?\n")
    one = {"prompts_per_direction": 1}
    few = {
        "prompts": str(questions),
        "directions": {"count": 2},
        "calibration": {"rounds": 1, "fresh": 2, "prompts_per_round": 1},
        "sampling": {"max_new_tokens": 6},
        "settings": {"esr": one, "baseline": one},
        "folder": str(folder / name),
    }
    return presets.from_preset(name, protocols.settings(), **{**few, **values})


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_whole_run_goes_through_every_preset(name: str, tmp_path: Path) -> None:
    own = preset(name, tmp_path)
    made = rehearsal(own)
    found = run(made)
    [steered] = found["esr"].summaries
    assert steered.n + steered.missing == 2
    loaded = AutoConfig.from_pretrained(made.model.source)
    assert loaded.num_hidden_layers == LAYERS[name]
    assert Path(made.sae.spec).name == Path(own.sae.spec).name
    with Store.open(made.place, mode="ro") as store:
        trials = [t for t, _ in store.trials(protocol="esr")]
        assert {t.steered_by.layer for t in trials} == {own.model.steer_layer}
        assert store.get_artifact("residual_norm")["layer"] == own.model.steer_layer
    assert made.readout_layer == own.readout_layer == own.sae.layer


def test_published_architectures_are_the_models_own_names() -> None:
    for name in PUBLISHED:
        repository = presets.from_preset(name).model.source
        fields = dict(architecture(repository) or {})
        kind = fields.pop("model_type")
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **fields))
        last = LAYERS[name] - 1
        assert model.get_submodule(f"model.layers.{last}.mlp.down_proj")
        shape = tuple(model.get_parameter(f"model.layers.{last}.self_attn.q_proj.weight").shape)
        assert shape == (
            fields["num_attention_heads"] * fields["head_dim"],
            fields["hidden_size"],
        )


def test_widths_shrink_and_nothing_else() -> None:
    fields = architecture("google/gemma-2-27b-it") or {}
    small = reduced(fields, 261, 32)
    changed = {k for k in fields if fields[k] != small[k]}
    assert changed == {
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "sliding_window",
        "query_pre_attn_scalar",
    }
    assert small["num_attention_heads"] / small["num_key_value_heads"] == 2


def test_chats_have_the_shape_of_their_family() -> None:
    said = [Message("user", " Why? ")]
    llama, gemma = byte_tokenizer("llama"), byte_tokenizer("gemma2")
    assert llama.decode(encode_prompt(llama, said)) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert gemma.decode(encode_prompt(gemma, said)) == (
        "<bos><start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n"
    )
    gemma_template, gemma.chat_template = gemma.chat_template, "{{ bos_token }}on {{ date_string }}"
    assert gemma.decode(encode_prompt(gemma, said)) == "<bos>on 26 Jul 2024"
    gemma.chat_template = gemma_template
    with pytest.raises(UserError, match="there is no system role"):
        encode_prompt(gemma, [Message("system", "x"), *said])


def test_the_same_files_every_time(tmp_path: Path) -> None:
    fields = architecture("google/gemma-2-2b-it") or {}
    for n in "ab":
        write_model({**fields, "num_hidden_layers": 1}, tmp_path / n, 32)
    files = [(tmp_path / n / "model.safetensors").read_bytes() for n in "ab"]
    assert files[0] == files[1]


@pytest.mark.parametrize("spec", ["x/s-l3.pt", "x/s-l3.pth", "x/params.npz", "saelens:a/b"])
def test_every_format_holds_the_same_sae(spec: str, tmp_path: Path) -> None:
    sae = load_sae(write_sae(spec, 3, tmp_path, 8, 40))
    other = load_sae(write_sae("params.npz", 3, tmp_path / "other", 8, 40))
    assert (sae.n, sae.d_model, sae.layer) == (40, 8, 3)
    torch.testing.assert_close(sae.directions([7, 3]), other.directions([7, 3]))
    h = 50 * torch.randn(17, 8, generator=torch.Generator().manual_seed(1))
    mine, theirs = sae.reader(None)(h) > 0, other.reader(None)(h) > 0
    assert torch.equal(mine, theirs)
    assert 0 < mine.float().mean() < 0.5


def test_goodfire_at_its_true_shape_is_read_in_parts(tmp_path: Path) -> None:
    """65,536 latents of width 8192: the file holds one number per matrix, repeated by its strides."""
    file = tmp_path / "Llama-3.3-70B-Instruct-SAE-l50.pt"
    parts = {
        "encoder_linear.weight": torch.full((1, 1), 0.5).expand(65536, 8192),
        "encoder_linear.bias": torch.zeros(65536),
        "decoder_linear.weight": torch.full((1, 1), 2.0).expand(8192, 65536),
        "decoder_linear.bias": torch.zeros(8192),
    }
    torch.save(parts, file)
    sae = load_sae(file)
    assert (sae.n, sae.d_model, sae.layer) == (65536, 8192, 50)
    assert torch.equal(sae.directions([0, 65535]), torch.full((2, 8192), 2.0))
    assert torch.equal(sae.reader([65535])(torch.ones(3, 8192)), torch.full((3, 1), 4096.0))


def test_gemma_scope_at_its_true_shape_is_read_in_parts(tmp_path: Path) -> None:
    folder = tmp_path / "layer_16" / "width_16k" / "average_l0_78"
    folder.mkdir(parents=True)
    np.savez_compressed(
        folder / "params.npz",
        W_enc=np.ones((2304, 16384), np.float16),
        W_dec=np.ones((16384, 2304), np.float16),
        b_enc=np.zeros(16384, np.float32),
        b_dec=np.zeros(2304, np.float32),
        threshold=np.ones(16384, np.float32),
    )
    sae = load_sae(folder)
    assert (sae.n, sae.d_model, sae.layer) == (16384, 2304, 16)
    assert torch.equal(sae.directions([16383]), torch.ones(1, 2304))
    assert torch.equal(sae.reader([5])(torch.ones(2, 2304)), torch.full((2, 1), 2304.0))


def test_what_cannot_be_rehearsed(tmp_path: Path) -> None:
    far = presets.from_anywhere("a/b", "saelens:x/y", 3, protocols.settings())
    with pytest.raises(UserError, match="its architecture is not packaged"):
        rehearsal(far)
    deep = preset("gemma-2-2b-it", tmp_path, model={"steer_layer": 26})
    with pytest.raises(UserError, match=r"model.steer_layer: layer 26 does not exist.* 26 layers"):
        rehearsal(deep)


def test_a_folder_of_ones_own_is_rehearsed_by_its_config(tmp_path: Path) -> None:
    made = rehearsal(preset("organism-resister", tmp_path))
    own, small = (AutoConfig.from_pretrained(p) for p in (_organism(), made.model.source))
    assert own.num_hidden_layers == small.num_hidden_layers
    assert small.hidden_size == 32


def _organism() -> Path:
    from steerback import organism

    return organism.path("resister")
