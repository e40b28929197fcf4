"""How fast trials are generated, beside what people do otherwise, and what steering costs.

    python benchmarks/engine.py [--model organism|random] [--rounds 5] [--json]

256 trials with ragged prompts and forced lengths (16 to 256 new tokens), each with a latent of its
own added to the response. In every round, in turn:

(a) transformers `generate()`, one trial at a time, behind a hook (on every 16th trial: it is slow)
(b) transformers `generate()` on left-padded batches of 64 in the order given, behind a hook with a
    direction per row; and the same sorted by length, so that little of a batch is padding
(c) vLLM, unsteered, a seed per trial, if it is installed
(d) this engine, and this engine on the transformers forward
(e) this engine unsteered, with 26 latents clamped, with 26 watched, and with added ones

Rates are tokens asked for per second of processor time of this process (`--wall`: per second of the
clock): on a shared machine the clock also measures the neighbours. (c) works in a process of its own,
so it is timed by the clock. "matrix products" is how fast the products of the decoder's weights alone
could go, at 64 rows.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import common
import torch
import torch.nn.functional as F
from common import Spread, Subject
from torch import Tensor

from steerback import chat
from steerback.engine.base import Watch
from steerback.engine.fused import FusedDecoder
from steerback.engine.hf import HFEngine
from steerback.engine.hooked import decoder_layers
from steerback.types import Trial

SLOTS = 64
SPARSE = 16
"""One in so many trials is enough to time (a)."""
SHOWN = {
    "one by one": "(a) generate(), one trial at a time",
    "padded": "(b) generate(), padded batches",
    "padded sorted": "(b) the same, sorted by length",
    "vllm": "(c) vLLM, unsteered",
    "add": "(d) steerback, one latent added",
    "transformers": "(d) steerback on the transformers forward",
    "unsteered": "(e) steerback, unsteered",
    "clamp": f"(e) steerback, {common.BANK} latents clamped",
    "watch": f"(e) steerback, {common.BANK} latents watched",
}
PEERS = ("one by one", "padded", "padded sorted", "vllm", "transformers")
OVERHEADS = ("add", "clamp", "watch")


class Peers:
    """transformers on its own: what a script behind a forward hook does."""

    def __init__(self, subject: Subject, tokenizer: chat.Tokenizer) -> None:
        from transformers import AutoModelForCausalLM

        self.subject, self.tokenizer = subject, tokenizer
        self.model: Any = AutoModelForCausalLM.from_pretrained(subject.folder).eval()
        self.model.generation_config.eos_token_id = None
        self.site = decoder_layers(self.model)[subject.layer]

    @contextmanager
    def steered(self, delta: Tensor) -> Iterator[None]:
        """Add delta [rows, d_model] to every generated token; the prompt passes unchanged."""

        def hook(_module: Any, _inputs: Any, output: Any) -> Any:
            h = output[0] if isinstance(output, tuple) else output
            if h.shape[1] > 1:
                return output
            new = h + delta[:, None]
            return (new, *output[1:]) if isinstance(output, tuple) else new

        handle = self.site.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def generate(self, trials: Sequence[Trial]) -> int:
        """One padded batch, as long as its longest trial; the tokens that were asked for."""
        prompts = [chat.encode_prompt(self.tokenizer, t.messages) for t in trials]
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        adds = [t.interventions[0] for t in trials]
        rows = self.subject.sae.directions([i.index for i in adds])
        delta = torch.tensor([i.value for i in adds])[:, None] * rows
        wanted = [t.sampling.max_new_tokens for t in trials]
        with self.steered(delta):
            out = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=True,
                temperature=trials[0].sampling.temperature,
                top_k=0,
                repetition_penalty=trials[0].sampling.repetition_penalty,
                max_new_tokens=max(wanted),
                pad_token_id=0,
            )
        assert out.shape[1] == longest + max(wanted)
        return sum(wanted)

    def in_batches(self, trials: Sequence[Trial], size: int) -> int:
        return sum(self.generate(trials[i : i + size]) for i in range(0, len(trials), size))


def vllm_run(subject: Subject, trials: Sequence[Trial]) -> Callable[[], int]:
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(subject.folder),
        dtype="float32",
        max_model_len=512,
        max_num_seqs=SLOTS,
        disable_log_stats=True,
    )
    tokenizer = llm.get_tokenizer()
    prompts = [{"prompt_token_ids": chat.encode_prompt(tokenizer, t.messages)} for t in trials]
    settings = [
        SamplingParams(
            temperature=t.sampling.temperature,
            repetition_penalty=t.sampling.repetition_penalty,
            max_tokens=t.sampling.max_new_tokens,
            ignore_eos=True,
            seed=t.seed,
        )
        for t in trials
    ]

    def run() -> int:
        done = llm.generate(prompts, settings, use_tqdm=False)
        return sum(len(d.outputs[0].token_ids) for d in done)

    return run


def load(subject: Subject, backend: str) -> HFEngine:
    engine = HFEngine.load(
        subject.folder, sources={"sae": subject.sae}, slots=SLOTS, device="cpu", backend=backend
    )
    engine.eos = frozenset()
    return engine


def variants(
    subject: Subject, engine: HFEngine, n: int, names: Sequence[str]
) -> dict[str, Callable[[], int]]:
    """What is timed, by name; each returns its tokens."""
    adds = common.trials(subject, n, common.adding(subject))
    plain = common.trials(subject, n, common.unsteered)
    clamps = common.trials(subject, n, common.clamping(subject))
    watch = Watch("sae", subject.layer, tuple(range(common.BANK)))

    def ours(trials: Sequence[Trial], on: HFEngine = engine, **options: Any) -> int:
        return sum(len(g.token_ids) for g in on.generate(trials, **options))

    out: dict[str, Callable[[], int]] = {
        "add": lambda: ours(adds),
        "unsteered": lambda: ours(plain),
        "clamp": lambda: ours(clamps),
        "watch": lambda: ours(plain, watch=watch),
    }
    if {"one by one", "padded", "padded sorted"} & set(names):
        slow = Peers(subject, engine.tokenizer)
        by_length = sorted(adds, key=lambda t: t.sampling.max_new_tokens)
        out["one by one"] = lambda: slow.in_batches(adds[::SPARSE], 1)
        out["padded"] = lambda: slow.in_batches(adds, SLOTS)
        out["padded sorted"] = lambda: slow.in_batches(by_length, SLOTS)
    if "transformers" in names:
        forward = load(subject, "transformers")
        out["transformers"] = lambda: ours(adds, forward)
    if "vllm" in names:
        out["vllm"] = vllm_run(subject, plain)
    return {name: out[name] for name in names}


def chosen(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """What is measured, and what is said about what is not."""
    names, notes = options.only or list(SHOWN), []
    if "vllm" in names and importlib.util.find_spec("vllm") is None:
        notes.append("(c) vLLM is not installed here: not measured")
    elif "vllm" in names and not options.wall:
        notes.append("(c) vLLM works in processes of its own: measured with --wall only")
    if notes:
        names = [name for name in names if name != "vllm"]
    return names, notes


@torch.inference_mode()
def matrix_products(backend: FusedDecoder, rounds: int, clock: common.Clock) -> Spread:
    """Tokens per second if a step were nothing but products with the weights."""
    weights = [w for layer in backend.layers for w in (layer.qkv, layer.out, layer.gate_up)]
    weights += [layer.down for layer in backend.layers] + [backend.head]
    inputs = {w.shape[1]: torch.randn(SLOTS, w.shape[1]) for w in weights}
    rates = []
    for _ in range(rounds):
        start = clock()
        for _ in range(20):
            for w in weights:
                F.linear(inputs[w.shape[1]], w)
        rates.append(20 * SLOTS / (clock() - start))
    return Spread.of(rates)


def ratios(
    rates: dict[str, list[float]], names: Sequence[str], base: str
) -> dict[str, dict[str, float]]:
    """Time of each over the time of `base`, round by round."""
    both = [name for name in names if name in rates and base in rates]
    return {name: vars(common.paired(rates, name, base)) for name in both}


def measure(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    clock: common.Clock = time.perf_counter if options.wall else time.process_time
    subject = common.subject(options.model, scratch)
    engine = load(subject, "auto")
    names, notes = chosen(options)
    timed = variants(subject, engine, options.trials, names)
    for run in timed.values():
        if options.warm:
            run()
    rates = common.interleave(timed, options.rounds, clock)
    found: dict[str, Any] = {
        "machine": common.machine(),
        "clock": "wall" if options.wall else "processor",
        "model": subject.name,
        "parameters": sum(p.numel() for p in engine.model.parameters()),
        "trials": options.trials,
        "rounds": options.rounds,
        "backend": engine.backend.kind,
        "rates": {name: vars(Spread.of(values)) for name, values in rates.items()},
        "speedup": ratios(rates, PEERS, "add"),
        "overhead": ratios(rates, OVERHEADS, "unsteered"),
        "notes": notes,
    }
    if isinstance(engine.backend, FusedDecoder):
        found["rates"]["products"] = vars(matrix_products(engine.backend, options.rounds, clock))
    return found


def show(found: dict[str, Any]) -> str:
    names = [name for name in SHOWN if name in found["rates"]]
    if "products" in found["rates"]:
        names.append("products")
    rows = []
    for name in names:
        rate, speedup = found["rates"][name], found["speedup"].get(name)
        overhead = found["overhead"].get(name)
        rows.append(
            [
                SHOWN.get(name, "matrix products alone, 64 rows"),
                f"{rate['median']:,.0f}",
                f"{rate['low']:,.0f} to {rate['high']:,.0f}",
                f"{speedup['median']:.1f} x" if speedup else "",
                f"{100 * (overhead['median'] - 1):+.1f} %" if overhead else "",
            ]
        )
    head = ["", "tokens/s", "range", "steerback is", "costs"]
    m = found["machine"]
    lines = [
        f"{found['model']}, {found['parameters'] / 1e6:.1f}M parameters, {found['trials']} trials, "
        f"{SLOTS} slots, {found['rounds']} rounds, {found['clock']} time",
        f"{m['cpu']}, {m['cores']} cores, {m['threads']} threads, load {m['load']}; "
        f"Python {m['python']}, torch {m['torch']}, transformers {m['transformers']}",
        "",
        common.table(head, rows),
        *found["notes"],
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=["organism", "random"], default="organism")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=256)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--wall", action="store_true", help="time by the clock")
    parser.add_argument("--only", choices=list(SHOWN), action="append", help="may be repeated")
    parser.add_argument("--no-warm", dest="warm", action="store_false", help="no round before")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(options, Path(scratch))
    print(json.dumps(found, indent=1) if options.json else show(found))


if __name__ == "__main__":
    main()
