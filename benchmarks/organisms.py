"""The pipeline at several seeds: trains organisms, checks them, prints the tables of docs/organisms.md.

    python benchmarks/organisms.py [NAME ...] [--seeds 1 2 3] [--out runs/organisms] [--work DIR]

What is trained or measured already is not done again, but what another recipe made is; the recipe's
own seed is the packaged organism. Hours of one core from nothing; two at once share the work if each
is given other names.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from steerback import organism
from steerback.organism.check import Finding, check
from steerback.organism.packaging import train
from steerback.organism.recipes import recipe

COLUMNS = {
    "baseline.first_score": "unsteered score",
    "baseline.multi_attempt": "restarts",
    "esr.first_score": "first score",
    "esr.multi_attempt": "multi-attempt",
    "esr.esr": "ESR",
}
SCORES = ("baseline.first_score",)
"""Printed without an interval: it is narrower than the last digit."""
OTHERS = {
    "esr.improvement_above_chance": "improvement above chance, points",
    "prefill:unsteered.multi_attempt": "prefilled off-topic text, unsteered: restarts",
    "prefill:unsteered.cond_improvement": "of those, improved",
    "prefill:steered.multi_attempt": "prefilled, steered: restarts",
    "ablation:detectors.multi_attempt_cut": "detectors clamped: multi-attempt cut by",
    "ablation:random set.multi_attempt_change": "matched random sets clamped: change (median; ends)",
    "esr.implicit_recovery": "implicit recovery",
    "metaprompt:trained.multi_attempt_ratio.low": "with its sentence, times as many: low end",
}
NO_INTERVAL = (*SCORES, "metaprompt:trained.multi_attempt_ratio.low")

Found = Mapping[str, Finding]


def made(name: str, seed: int, out: Path, work: Path) -> Path | None:
    """Where the organism lies, made if need be; None: the packaged one."""
    plan = recipe(name, seed)
    if seed == recipe(name).seed and name in organism.names():
        return None
    folders = organism.Folders.under(out, name)
    known = (folders.model / "provenance.json").is_file()
    if not known or folders.provenance["recipe"] != plan.key(len(plan.stages)):
        train(name, out, work, seed, report=lambda line: print(line, file=sys.stderr, flush=True))
    return out


def measured(name: str, seed: int, out: Path, work: Path) -> Found:
    """Every number that is expected of the organism, by its key."""
    where = made(name, seed, out / f"seed{seed}", work)
    return {f.measure: f for f in check([name], out / f"runs{seed}", made=where)}


def cell(found: Finding) -> str:
    text = f"{found.value:.1f}"
    if found.measure not in NO_INTERVAL:
        text += f" [{found.low:.1f}, {found.high:.1f}]"
    return text if found.met else f"**{text}**"


def rows(results: Mapping[tuple[str, int], Found]) -> Iterator[str]:
    yield "| organism, seed | " + " | ".join(COLUMNS.values()) + " |"
    yield "|---" * (len(COLUMNS) + 1) + "|"
    for (name, seed), found in results.items():
        cells = (cell(found[key]) if key in found else "" for key in COLUMNS)
        yield f"| `{name}`, {seed} | " + " | ".join(cells) + " |"


def other_rows(results: Mapping[tuple[str, int], Found], seeds: Sequence[int]) -> Iterator[str]:
    yield "| organism | measure | " + " | ".join(f"seed {s}" for s in seeds) + " |"
    yield "|---" * (len(seeds) + 2) + "|"
    for name in dict.fromkeys(name for name, _ in results):
        for key, title in OTHERS.items():
            if any(key in results.get((name, s), {}) for s in seeds):
                found = (results.get((name, s), {}).get(key) for s in seeds)
                cells = (cell(f) if f else "" for f in found)
                yield f"| `{name}` | {title} | " + " | ".join(cells) + " |"


def autoencoders(
    names: Iterable[str], seeds: Sequence[int], out: Path, work: Path
) -> Iterator[str]:
    """Of the steer layer, seed by seed: what is left unexplained, silent latents, topics known."""
    yield "| organism | FVU | silent latents, % | topics with a latent of purity 0.9, of 48 |"
    yield "|---|---|---|---|"
    for name in names:
        every = []
        for seed in seeds:
            own = organism.folders(name, made(name, seed, out / f"seed{seed}", work)).provenance
            every.append(own["autoencoders"][f"layer{own['steer_layer']}"])
        fvu = " · ".join(f"{x['fvu']:.3f}" for x in every)
        silent = " · ".join(f"{100 * x['dead']:.1f}" for x in every)
        topics = " · ".join(str(x["topics_with_pure_latent"]) for x in every)
        yield f"| `{name}` | {fvu} | {silent} | {topics} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, default=Path("runs/organisms"))
    parser.add_argument("--work", type=Path, default=None)
    args = parser.parse_args()
    work = args.work or args.out / "work"
    names = args.names or organism.checked()
    results = {(n, s): measured(n, s, args.out, work) for n in names for s in args.seeds}
    for table in (
        rows(results),
        other_rows(results, args.seeds),
        autoencoders(names, args.seeds, args.out, work),
    ):
        print("\n".join(table), end="\n\n")


if __name__ == "__main__":
    main()
