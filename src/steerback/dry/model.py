"""A small model of random weights with the layers and names of a given one, and its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

HEAD_DIM, KV_HEADS = 8, 2
WINDOW = 24
"""Sliding window, so short that answers outgrow it."""


NOT_OF_THE_SHAPE = (
    "architectures",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "pad_token_id",
    "torch_dtype",
    "transformers_version",
)
"""Fields of a config.json that are set anew."""


class Chat(NamedTuple):
    """Special tokens, and a chat template of the family's shape."""

    special: tuple[str, ...]
    bos: str
    eos: str
    template: str


LLAMA = Chat(
    special=(
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ),
    bos="<|begin_of_text|>",
    eos="<|eot_id|>",
    template=(
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
)
GEMMA = Chat(
    special=("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
    bos="<bos>",
    eos="<end_of_turn>",
    template=(
        "{{ bos_token }}{% if messages[0].role == 'system' %}"
        "{{ raise_exception('there is no system role') }}{% endif %}{% for m in messages %}"
        "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    ),
)


def byte_tokenizer(model_type: str) -> PreTrainedTokenizerFast:
    """One token per byte, and the special tokens of the family: any text goes through."""
    chat = GEMMA if model_type.startswith("gemma") else LLAMA
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: i for i, word in enumerate((*chat.special, *alphabet))}
    core = Tokenizer(models.BPE(vocab=words, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(chat.special))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=chat.bos,
        eos_token=chat.eos,
        pad_token=chat.special[0],
    )
    fast.chat_template = chat.template
    return fast


def reduced(config: Mapping[str, Any], vocabulary: int, d_model: int) -> dict[str, Any]:
    """The fields of a config.json with small widths. Layers, query heads per key head, rope, norms,
    caps and ties stay."""
    heads = config["num_attention_heads"]
    group = heads // (config.get("num_key_value_heads") or heads)
    small = {
        "hidden_size": d_model,
        "intermediate_size": 2 * d_model,
        "num_attention_heads": KV_HEADS * group,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": vocabulary,
    }
    if config.get("sliding_window"):
        small["sliding_window"] = WINDOW
    if config.get("query_pre_attn_scalar"):
        small["query_pre_attn_scalar"] = HEAD_DIM
    kept = {k: v for k, v in config.items() if k not in NOT_OF_THE_SHAPE}
    return {**kept, **small, "initializer_range": 0.2}


def write_model(config: Mapping[str, Any], folder: Path, d_model: int) -> None:
    """Model and tokenizer as transformers loads them; the same every time."""
    tokenizer = byte_tokenizer(config["model_type"])
    fields = reduced(config, len(tokenizer), d_model)
    kind = fields.pop("model_type")
    made = AutoConfig.for_model(
        kind,
        **fields,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(made, dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
