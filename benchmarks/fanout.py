"""How much faster two Ray actors are than one, and what Ray costs beside one process.

    OMP_NUM_THREADS=1 python benchmarks/fanout.py [--rounds 3] [--trials 256] [--actors 2]

The packaged organism, the trials of benchmarks/engine.py, by the clock: this process, one actor, and
several, in turn in every round. A machine with fewer free cores than actors measures those.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

import common
from common import Spread

from steerback import organism
from steerback.engine.facts import Facts
from steerback.engine.fanout import RayEngine
from steerback.engine.hf import HFEngine
from steerback.engine.shared import SharedEngine
from steerback.sae import load_sae


def here(folder: Path, sae: Path) -> SharedEngine:
    sources = {"sae": load_sae(sae, name="sae")}
    engine = HFEngine.load(folder, name="m", sources=sources, slots=32, device="cpu")
    engine.eos = frozenset()
    return engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=256)
    parser.add_argument("--actors", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        subject = common.subject("organism", Path(scratch))
        make = partial(here, subject.folder, organism.sae_path(subject.name))
        counts = (1, options.actors)
        engines: dict[str, SharedEngine] = {"this process": make()} | {
            f"{n} actors": RayEngine(
                make,
                Facts.of(subject.folder),
                name="m",
                sources={"sae": subject.sae},
                slots=32,
                actors=n,
                cpus=0,
            )
            for n in counts
        }
        todo = common.trials(subject, options.trials, common.adding(subject))

        def run(engine: SharedEngine) -> int:
            return sum(len(g.token_ids) for g in engine.generate(todo))

        timed = {name: partial(run, engine) for name, engine in engines.items()}
        for once in timed.values():
            once()
        rates = common.interleave(timed, options.rounds)
        for engine in engines.values():
            engine.close()
    rows = []
    for name, values in rates.items():
        rate, ratio = Spread.of(values), common.paired(rates, "1 actors", name)
        shown = [f"{ratio.median:.2f}", f"{ratio.low:.2f} to {ratio.high:.2f}"]
        rows.append([name, f"{rate.median:,.0f}", f"{rate.low:,.0f} to {rate.high:,.0f}", *shown])
    m = common.machine()
    print(f"{subject.name}, {options.trials} trials, {options.rounds} rounds, by the clock")
    print(f"{m['cpu']}, {m['cores']} cores, load {m['load']}; torch {m['torch']}\n")
    print(common.table(["", "tokens/s", "range", "beside one actor", "range"], rows))


if __name__ == "__main__":
    main()
