"""How fast the engine decodes on a GPU, as a share of what memory bandwidth allows.

    python benchmarks/gpu.py [--shape llama-3.1-8b|gemma-2-9b] [--json]
    python benchmarks/gpu.py --cpu-rehearsal

Models of published shapes with random weights in bfloat16, and an SAE with 65,536 latents. A decode
step has to read the weights once and every key and value that its rows hold: that many bytes over
the bandwidth measured here (a copy on the device) is the least time it can take, and the share is that
time over the time taken. Rates are of decoding alone: the time of a long run minus that of a short one.
Steering costs what one added latent per row adds, paired by round.

`--cpu-rehearsal` runs the same code on small shapes on the CPU. It shows that the script works; its
numbers say nothing about any device.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import common
import torch
from common import Spread, Subject

from steerback.engine.fused import FusedDecoder
from steerback.engine.hf import HFEngine
from steerback.types import Trial

PROMPT_WORDS = 60
SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "gemma-2-9b": {
        "model_type": "gemma2",
        "vocab_size": 256000,
        "hidden_size": 3584,
        "intermediate_size": 14336,
        "num_hidden_layers": 42,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
    },
}
SMALL = {
    "vocab_size": 4096,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


@dataclass(frozen=True)
class Plan:
    """Sizes of a measurement."""

    device: str
    slots: tuple[int, ...]
    short: int
    long: int
    latents: int
    rounds: int
    copied: int
    """Bytes of the copy that measures bandwidth."""

    @property
    def tokens(self) -> int:
        """Decoded per row between the short and the long run."""
        return self.long - self.short


GPU = Plan("cuda", (1, 64, 256), short=16, long=80, latents=65536, rounds=5, copied=2**30)
REHEARSAL = Plan("cpu", (1, 4), short=2, long=42, latents=512, rounds=2, copied=2**22)


def build(name: str, plan: Plan) -> tuple[HFEngine, Subject]:
    from transformers import AutoConfig, AutoModelForCausalLM

    words = tuple(f"w{i}" for i in range(common.RANDOM_WORDS))
    shape = SHAPES[name] | (SMALL if plan.device == "cpu" else {})
    settings = {k: v for k, v in shape.items() if k != "model_type"}
    config = AutoConfig.for_model(
        shape["model_type"],
        **settings,
        max_position_embeddings=2048,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    with torch.device(plan.device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    sae = common.random_sae(config.hidden_size, plan.latents, torch.bfloat16)
    layer = config.num_hidden_layers // 2
    engine = HFEngine(model, common.word_tokenizer(words), name=name, sources={"sae": sae})
    engine.eos = frozenset()
    return engine, Subject(name, common.Path(), sae, layer, words)


def trials(subject: Subject, rows: int, tokens: int, edits: common.Edits) -> list[Trial]:
    return common.trials(
        subject, rows, edits, lengths=(tokens, tokens), prompts=(PROMPT_WORDS, PROMPT_WORDS)
    )


def seconds(run: Callable[[], Any]) -> float:
    """On the device's own clock: nothing is left to be done when it stops."""
    synchronise()
    start = time.perf_counter()
    run()
    synchronise()
    return time.perf_counter() - start


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def bandwidth(plan: Plan) -> float:
    """Bytes per second, read and written, of a copy on the device."""
    source = torch.zeros(plan.copied, dtype=torch.uint8, device=plan.device)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * plan.copied / min(seconds(lambda: target.copy_(source)) for _ in range(5))


def bytes_per_step(engine: HFEngine, prompt: int, rows: int, plan: Plan) -> float:
    """The weights once, and each row's keys and values, half way between the short and long runs."""
    backend = engine.backend
    assert isinstance(backend, FusedDecoder)
    weights = [getattr(layer, kind) for layer in backend.layers for kind in WEIGHTS]
    held = prompt + (plan.short + plan.long) / 2
    per_token = 2 * backend.n_layers * backend.kv_heads * backend.head_dim
    cells = sum(w.numel() for w in weights) + backend.head.numel() + rows * held * per_token
    return cells * backend.dtype.itemsize


WEIGHTS = ("qkv", "out", "gate_up", "down")


def decode_rate(run: Callable[[int], Any], rows: int, plan: Plan) -> float:
    """Tokens per second; run(n) makes n tokens in each row. NaN where noise hides the difference."""
    more = -seconds(lambda: run(plan.short)) + seconds(lambda: run(plan.long))
    return rows * plan.tokens / more if more > 0 else math.nan


def runs(engine: HFEngine, subject: Subject, rows: int) -> dict[str, Callable[[int], Any]]:
    """Each makes n tokens in `rows` rows."""
    prompt = engine.encode_prompt(trials(subject, 1, 1, common.unsteered)[0].messages)
    ids = torch.tensor([prompt] * rows, device=engine.backend.device)

    def ours(edits: common.Edits) -> Callable[[int], Any]:
        return lambda n: list(engine.generate(trials(subject, rows, n, edits)))

    return {
        "steerback": ours(common.unsteered),
        "add": ours(common.adding(subject)),
        "generate": lambda n: engine.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            max_new_tokens=n,
            pad_token_id=0,
        ),
    }


def measure(engine: HFEngine, subject: Subject, rows: int, plan: Plan) -> dict[str, Any]:
    engine.slots = rows
    variants = runs(engine, subject, rows)
    for run in variants.values():
        run(plan.short)
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(plan.rounds):
        for name, run in variants.items():
            rates[name].append(decode_rate(run, rows, plan))
    prompt = len(engine.encode_prompt(trials(subject, 1, 1, common.unsteered)[0].messages))
    least = bytes_per_step(engine, prompt, rows, plan) / bandwidth(plan)
    bound = rows / least
    return {
        "slots": rows,
        "rates": {name: vars(Spread.of(values)) for name, values in rates.items()},
        "bound": bound,
        "share": statistics.median(rates["steerback"]) / bound,
        "overhead": vars(common.paired(rates, "add", "steerback")),
    }


def show(name: str, found: Sequence[dict[str, Any]]) -> str:
    head = [name, "tokens/s", "bound", "share", "one latent costs", "generate()"]
    rows = [
        [
            f"{f['slots']} slots",
            f"{f['rates']['steerback']['median']:,.0f}",
            f"{f['bound']:,.0f}",
            f"{100 * f['share']:.0f} %",
            f"{100 * (f['overhead']['median'] - 1):+.1f} %",
            f"{f['rates']['generate']['median']:,.0f}",
        ]
        for f in found
    ]
    return common.table(head, rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=list(SHAPES), action="append")
    parser.add_argument("--cpu-rehearsal", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not options.cpu_rehearsal and not torch.cuda.is_available():
        print(
            "error: benchmarks/gpu.py needs a CUDA device and finds none; "
            "--cpu-rehearsal runs the same code at a small size",
            file=sys.stderr,
        )
        return 2
    plan = REHEARSAL if options.cpu_rehearsal else GPU
    found = {}
    for name in options.shape or SHAPES:
        engine, subject = build(name, plan)
        found[name] = [measure(engine, subject, rows, plan) for rows in plan.slots]
        if not options.json:
            print(show(name, found[name]), flush=True)
        del engine
        torch.cuda.empty_cache()
    device = (
        torch.cuda.get_device_name() if plan.device == "cuda" else "CPU rehearsal: not a result"
    )
    if options.json:
        print(json.dumps({"machine": common.machine(), "device": device, "found": found}, indent=1))
    else:
        print(device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
