"""What the benchmarks share: models, trials, interleaved timing, one table."""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import torch
from torch import Tensor

from steerback import organism
from steerback.sae import Sae, load_sae
from steerback.sae.spec import Matrix, SaeSpec
from steerback.sae.tensors import MemoryTensors
from steerback.types import Intervention, Message, Sampling, Trial

TEMPLATE = (
    "<bos>{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
RANDOM_WORDS = 2048
BANK = 26
"""Latents that are clamped or watched: as many as the published ablation clamps."""


@dataclass(frozen=True)
class Subject:
    """A model folder and an SAE for it."""

    name: str
    folder: Path
    sae: Sae
    layer: int
    words: tuple[str, ...]
    """Words of which each is one token: prompts are made of them."""


def subject(kind: str, scratch: Path) -> Subject:
    """ "organism": a packaged one, else "random"; "random": a 5M Llama written to `scratch`."""
    packaged = organism.names()
    if kind == "organism" and packaged:
        name = "resister" if "resister" in packaged else packaged[0]
        return from_folders(
            organism.path(name), organism.sae_path(name), organism.steer_layer(name)
        )
    return random_subject(scratch)


def from_folders(folder: Path, sae: Path, layer: int) -> Subject:
    vocabulary = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    words = tuple(w for w in vocabulary if w.isalpha())
    return Subject(folder.name, folder, load_sae(sae, name="sae"), layer, words)


def random_subject(folder: Path) -> Subject:
    """Hidden size 256, 6 layers, 8 heads sharing 4 key heads, 2,055 tokens: 5.2M parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    words = tuple(f"w{i}" for i in range(RANDOM_WORDS))
    tokenizer = word_tokenizer(words)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.05,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return Subject("random Llama", folder, random_sae(256, 512), layer=2, words=words)


def word_tokenizer(words: Sequence[str]) -> Any:
    """One token per word, and a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<|user|>", "<|assistant|>", "<|end|>"]
    ids = {word: i for i, word in enumerate([*special, *words])}
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        chat_template=TEMPLATE,
    )


def random_sae(
    d_model: int, n: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Sae:
    """JumpReLU with unit decoder rows, held in memory."""
    generator = torch.Generator(device).manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=dtype) / d_model**0.5

    tensors = {
        "W_enc": normal(d_model, n),
        "b_enc": normal(n),
        "W_dec": normal(n, d_model),
        "threshold": normal(n).abs(),
    }
    spec = SaeSpec(
        file=MemoryTensors({name: t.cpu() for name, t in tensors.items()}),
        where="random SAE",
        d_model=d_model,
        n=n,
        architecture="jumprelu",
        W_enc=Matrix("W_enc"),
        W_dec=Matrix("W_dec"),
    )
    return Sae(spec, "sae")


# --- trials -----------------------------------------------------------------------------------

Edits = Callable[[random.Random], tuple[Intervention, ...]]


def unsteered(_rng: random.Random) -> tuple[Intervention, ...]:
    return ()


def adding(subject: Subject) -> Edits:
    """One latent of its own for each trial, at a strength that leaves the text alive."""
    return lambda rng: (
        Intervention("add", "sae", rng.randrange(subject.sae.n), 1.0, subject.layer),
    )


def clamping(subject: Subject) -> Edits:
    """The addition, and the same 26 latents clamped to zero in each trial."""
    clamped = random.Random(0).sample(range(subject.sae.n), BANK)
    off = tuple(Intervention("clamp", "sae", k, 0.0, subject.layer) for k in clamped)
    return lambda rng: adding(subject)(rng) + off


def trials(
    subject: Subject,
    n: int,
    edits: Edits,
    *,
    lengths: tuple[int, int] = (16, 256),
    prompts: tuple[int, int] = (4, 60),
) -> list[Trial]:
    """Ragged prompts (words) and forced lengths (new tokens), drawn evenly; the same for any edits."""
    rng, own = random.Random(5), random.Random(6)
    out = []
    for i in range(n):
        question = " ".join(rng.choices(subject.words, k=rng.randint(*prompts)))
        sampling = Sampling(max_new_tokens=rng.randint(*lengths))
        messages = (Message("user", question),)
        out.append(Trial("bench", "", subject.name, question, messages, sampling, i, edits(own)))
    return out


# --- timing -----------------------------------------------------------------------------------


Clock = Callable[[], float]
"""Seconds: of the clock, or of this process's processor time."""


def interleave(
    variants: Mapping[str, Callable[[], int]], repeats: int, clock: Clock = time.perf_counter
) -> dict[str, list[float]]:
    """Tokens per second of each variant (which returns its tokens), all of them in every round.

    Every second round runs backwards, so that a drift of the machine favours nobody.
    """
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for n in range(repeats):
        order = list(variants)
        for name in order if n % 2 == 0 else reversed(order):
            start = clock()
            tokens = variants[name]()
            rates[name].append(tokens / (clock() - start))
    return rates


@dataclass(frozen=True)
class Spread:
    """Median and range of repeated measurements."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values), len(values))


def paired(rates: Mapping[str, Sequence[float]], name: str, base: str) -> Spread:
    """Time of `name` over time of `base`, round by round."""
    return Spread.of([b / a for a, b in zip(rates[name], rates[base], strict=True)])


def machine() -> dict[str, Any]:
    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "-"

    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": installed("transformers"),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to the widest cell: the first to the left, the others to the right."""
    cells = [list(head), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
