"""Peak memory of reading every latent of a wide SAE: `python benchmarks/memory.py`.

A random Llama (d_model 256) and a random JumpReLU SAE of 65,536 latents; pairs of 600 tokens are read
through the protocols' bench and pooled. Each line is a process of its own: what its resident set grew by
from the moment everything was loaded, beside the result that it returns and the bound that is promised.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
from common import machine, random_sae, random_subject, table

from steerback.engine.hf import HFEngine
from steerback.instruments import CHUNK, Instruments
from steerback.lab import SOURCE, Lab
from steerback.protocols.bench import Text

LATENTS, D_MODEL, TOKENS, PROMPT = 65_536, 256, 600, 40
BEYOND = 400
"""MB that reading may hold besides its result, its chunk and one copy of the encoder."""
MB = 1e6


def bound(pairs: int) -> float:
    """MB: the result, the readings of one chunk, the encoder (twice while it is read), and `BEYOND`."""
    return (4 * LATENTS * (pairs + min(pairs, CHUNK) + 2 * D_MODEL)) / MB + BEYOND


def peak() -> float:
    """MB of the largest resident set so far (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB


def measure(pairs: int) -> dict[str, float]:
    """One reading in this process."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = random_subject(Path(scratch)).folder
        sae = random_sae(D_MODEL, LATENTS)
        engine = HFEngine.load(folder, name="random", device="cpu", sources={SOURCE: sae})
        model = SimpleNamespace(steer_layer=2)
        config = SimpleNamespace(model=model, readout_layer=2)
        lab = SimpleNamespace(engine=engine, config=config, labels={})
        bench = Instruments(cast("Lab", lab))
        rng = np.random.default_rng(0)
        ids = rng.integers(7, 2000, (pairs, TOKENS)).tolist()
        texts = [Text(tuple(row[:PROMPT]), tuple(row[PROMPT:])) for row in ids]
        bench.read(texts[:1], layer=2, latents=[0])
        loaded, start = peak(), time.perf_counter()
        result = bench.read(texts, layer=2)
        seconds = time.perf_counter() - start
    return {"grew": peak() - loaded, "result": result.nbytes / MB, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, nargs="+", default=[60, 500])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.one:
        print(json.dumps(measure(wanted.one)))
        return
    rows, broken = [], False
    for pairs in wanted.pairs:
        command = [sys.executable, __file__, "--one", str(pairs)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        broken |= found["grew"] > bound(pairs)
        numbers = (found["result"], found["grew"], bound(pairs))
        rows.append([str(pairs), *(f"{x:,.0f}" for x in numbers), f"{found['seconds']:.0f}"])
    print(json.dumps(machine()))
    print(table(["pairs", "result MB", "grew by MB", "bound MB", "seconds"], rows))
    if broken:
        sys.exit("the bound is broken")


if __name__ == "__main__":
    main()
