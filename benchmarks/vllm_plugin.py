"""What the plugin costs vLLM, and vLLM beside the in-process engine, on one core each.

    OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind taskset -c 0 \
        .venv-vllm/bin/python benchmarks/vllm_plugin.py [--rounds 3] [--slots 1 16] [--trials 64]

vLLM runs inside this process, so that both engines are timed by the processor time of one process on
one core. Trials are those of benchmarks/engine.py: ragged prompts, forced lengths (16 to 256 tokens).
Costs, at 64 slots, every arm in every round:

plain      vLLM without the plugin, its own sampler, a seed a request
idle       the same requests where the plugin is installed and nothing is steered
draw       unsteered trials of ours: our draw in the place of vLLM's
add, clamp, watch   a latent added; 26 clamped besides; 26 watched (a second pass over what was said)

Throughput at 1, 16, 64 and 256 slots: a latent added, in process and in vLLM.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import common
from common import Spread, Subject

from steerback import chat
from steerback.engine.base import Watch
from steerback.engine.hf import HFEngine
from steerback.engine.places import Place
from steerback.engine.shared import SharedEngine
from steerback.engine.vllm.engine import VLLMEngine
from steerback.engine.vllm.launch import Options, prepare, version_of_vllm
from steerback.types import Trial

SLOTS = {1: 4, 16: 32, 64: 64, 256: 192}
"""How many trials at how many slots."""
CACHE = {"kv_cache_memory_bytes": 256 * 2**20}
COSTS = ("idle", "draw", "add", "clamp", "watch")


def raw(llm: Any, trials: Sequence[Trial]) -> Callable[[], int]:
    """The trials as anybody would send them, unsteered."""
    from vllm import SamplingParams

    tokenizer = llm.get_tokenizer()
    prompts = [{"prompt_token_ids": chat.encode_prompt(tokenizer, t.messages)} for t in trials]
    settings = [
        SamplingParams(
            temperature=t.sampling.temperature,
            repetition_penalty=t.sampling.repetition_penalty,
            max_tokens=t.sampling.max_new_tokens,
            ignore_eos=True,
            seed=t.seed,
            detokenize=False,
        )
        for t in trials
    ]

    def run() -> int:
        done = llm.generate(prompts, settings, use_tqdm=False)
        return sum(len(d.outputs[0].token_ids) for d in done)

    return run


def in_vllm(subject: Subject, sae: Path, slots: int) -> VLLMEngine:
    engine = VLLMEngine.load(
        subject.folder,
        places={"sae": Place("sae", str(sae))},
        layers=[subject.layer],
        slots=slots,
        device="cpu",
        options=Options(eager=True, extra=CACHE),
    )
    engine.eos = frozenset()
    return engine


def in_process(subject: Subject, slots: int) -> HFEngine:
    engine = HFEngine.load(subject.folder, sources={"sae": subject.sae}, slots=slots, device="cpu")
    engine.eos = frozenset()
    return engine


def ours(engine: SharedEngine, trials: Sequence[Trial], **more: Any) -> Callable[[], int]:
    return lambda: sum(len(g.token_ids) for g in engine.generate(trials, **more))


def costs(subject: Subject, sae: Path, n: int) -> dict[str, Callable[[], int]]:
    from vllm import LLM

    plain = common.trials(subject, n, common.unsteered)
    kept = {"max_num_seqs": 64, "enforce_eager": True, "disable_log_stats": True, **CACHE}
    bare = LLM(model=str(subject.folder), dtype="float32", **kept)
    engine = in_vllm(subject, sae, 64)
    watch = Watch("sae", subject.layer, tuple(range(common.BANK)))
    return {
        "plain": raw(bare, plain),
        "idle": raw(engine._llm, plain),
        "draw": ours(engine, plain),
        "add": ours(engine, common.trials(subject, n, common.adding(subject))),
        "clamp": ours(engine, common.trials(subject, n, common.clamping(subject))),
        "watch": ours(engine, plain, watch=watch),
    }


def beside(subject: Subject, sae: Path, slots: int) -> dict[str, Callable[[], int]]:
    adds = common.trials(subject, SLOTS[slots], common.adding(subject))
    return {
        f"here {slots}": ours(in_process(subject, slots), adds),
        f"vllm {slots}": ours(in_vllm(subject, sae, slots), adds),
    }


def show(found: dict[str, Any]) -> str:
    rows = []
    for name, rate in found["rates"].items():
        cost = found["cost"].get(name)
        rows.append(
            [
                name,
                f"{rate['median']:,.0f}",
                f"{rate['low']:,.0f} to {rate['high']:,.0f}",
                f"{100 * (cost['median'] - 1):+.0f} %" if cost else "",
            ]
        )
    m = found["machine"]
    head = f"{m['cpu']}, 1 core, load {m['load']}; torch {m['torch']}, transformers {m['transformers']}"
    table = common.table(["", "tokens/s", "range", "beside plain"], rows)
    return f"{found['model']}, {found['engine']}, {found['rounds']} rounds\n{head}\n\n{table}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slots", type=int, nargs="*", choices=list(SLOTS), default=list(SLOTS))
    parser.add_argument("--trials", type=int, default=64, help="of the costs; 0 leaves them out")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    prepare()
    with tempfile.TemporaryDirectory() as scratch:
        subject = common.subject("organism", Path(scratch))
        from steerback import organism

        sae = organism.sae_path(subject.name)
        timed = costs(subject, sae, options.trials) if options.trials else {}
        for slots in options.slots:
            timed |= beside(subject, sae, slots)
        for run in timed.values():
            run()
        rates = common.interleave(timed, options.rounds, time.process_time)
    found = {
        "machine": common.machine(),
        "model": subject.name,
        "engine": f"vllm {version_of_vllm()}",
        "rounds": options.rounds,
        "rates": {name: vars(Spread.of(values)) for name, values in rates.items()},
        "cost": {
            name: vars(common.paired(rates, name, "plain")) for name in COSTS if name in rates
        },
    }
    print(json.dumps(found, indent=1) if options.json else show(found))


if __name__ == "__main__":
    main()
