"""Tiny random-weight models, a byte tokenizer and SAEs: fixtures built from configs, no files."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from steerback.sae import Sae, load_sae

SPECIAL = ["<pad>", "<eos>", "<bos>", "<|user|>", "<|system|>", "<|assistant|>", "<|end|>"]
TEMPLATE = (
    "<bos>{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + TEMPLATE
)


def tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """One token per byte, so that any text goes through and some characters take several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: i for i, word in enumerate(SPECIAL + alphabet)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIAL)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
    )
    fast.chat_template = template
    return fast


VOCAB = len(SPECIAL) + 256
D_MODEL = 48

COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": D_MODEL,
    "num_hidden_layers": 4,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
    "initializer_range": 0.2,
}
GROUPED = {"intermediate_size": 80, "num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def _llama() -> torch.nn.Module:
    return LlamaForCausalLM(LlamaConfig(**COMMON, **GROUPED))


def _llama3() -> torch.nn.Module:
    config = LlamaConfig(**COMMON, **GROUPED, rope_parameters=LLAMA3_ROPE, tie_word_embeddings=True)
    return LlamaForCausalLM(config)


def _mistral() -> torch.nn.Module:
    return MistralForCausalLM(MistralConfig(**COMMON, **GROUPED, sliding_window=9))


def _qwen2() -> torch.nn.Module:
    return Qwen2ForCausalLM(Qwen2Config(**COMMON, **GROUPED))


def _qwen3() -> torch.nn.Module:
    return Qwen3ForCausalLM(Qwen3Config(**COMMON, **GROUPED, head_dim=20))


def _gemma2() -> torch.nn.Module:
    config = Gemma2Config(
        **COMMON,
        **GROUPED,
        head_dim=16,
        query_pre_attn_scalar=24,
        sliding_window=9,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=7.0,
    )
    return Gemma2ForCausalLM(config)


def _gpt2() -> torch.nn.Module:
    config = GPT2Config(
        vocab_size=VOCAB,
        n_embd=D_MODEL,
        n_layer=4,
        n_head=4,
        n_positions=512,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        initializer_range=0.2,
    )
    return GPT2LMHeadModel(config)


def _neox() -> torch.nn.Module:
    config = GPTNeoXConfig(**COMMON, intermediate_size=80, num_attention_heads=4)
    return GPTNeoXForCausalLM(config)


BUILDERS = {
    "llama": _llama,
    "llama3": _llama3,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "gpt2": _gpt2,
    "neox": _neox,
}
FUSED = ("llama", "llama3", "mistral", "qwen2", "qwen3", "gemma2")


def build(kind: str, seed: int = 0) -> torch.nn.Module:
    """A model with random weights, biases and norms away from their defaults."""
    torch.manual_seed(seed)
    model = BUILDERS[kind]()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            assert name
    return model.eval()


def sae_weights(n: int = 60, d_model: int = D_MODEL, seed: int = 7) -> dict[str, torch.Tensor]:
    """JumpReLU weights of which about half the latents fire on a random stream."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "W_enc": torch.randn(d_model, n, generator=generator) / d_model**0.5,
        "b_enc": 0.1 * torch.randn(n, generator=generator),
        "W_dec": torch.randn(n, d_model, generator=generator),
        "b_dec": 0.1 * torch.randn(d_model, generator=generator),
        "threshold": 0.2 * torch.rand(n, generator=generator),
    }


def sae(folder: Path, weights: dict[str, torch.Tensor], name: str = "sae") -> Sae:
    """A SAELens folder with these weights, read back."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "sae_weights.safetensors")
    d_model, n = weights["W_enc"].shape
    config = {
        "architecture": "jumprelu",
        "d_in": d_model,
        "d_sae": n,
        "dtype": "float32",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "metadata": {"hook_name": "blocks.1.hook_resid_post"},
    }
    (folder / "cfg.json").write_text(json.dumps(config))
    return load_sae(folder, name=name)


def encode(weights: dict[str, torch.Tensor], h: torch.Tensor) -> torch.Tensor:
    """All activations, the slow way. h: [..., d_model]"""
    pre = (h - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    return torch.relu(pre) * (pre > weights["threshold"])
