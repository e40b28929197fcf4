"""`python -m steerback.organism train|card|check`: make organisms, describe them, test them."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from steerback import organism
from steerback.errors import UserError
from steerback.organism.card import write_card
from steerback.organism.check import Finding, check


def main(arguments: list[str] | None = None) -> int:
    got = _parser().parse_args(arguments)
    try:
        if got.verb == "card":
            print(write_card(got.name))
        elif got.verb == "train":
            organism.train(got.name, got.out, got.work, got.seed, _say)
        else:
            return _check(got)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m steerback.organism")
    verbs = parser.add_subparsers(dest="verb", required=True)
    make = verbs.add_parser("train", help="make an organism from its recipe")
    make.add_argument("name")
    make.add_argument("--out", type=Path, default=Path("organisms"), help="where to write it")
    make.add_argument("--work", type=Path, help="checkpoints of finished stages (default OUT/work)")
    make.add_argument("--seed", type=int, help="instead of the recipe's own")
    verbs.add_parser("card", help="write a packaged organism's card").add_argument("name")
    test = verbs.add_parser("check", help="measure organisms against what they are to show")
    test.add_argument("names", nargs="*", help="default: all of which something is expected")
    test.add_argument("--folder", type=Path, default=Path("runs/check"), help="where runs are kept")
    test.add_argument("--latents", type=int, default=24)
    test.add_argument("--prompts", type=int, default=30, help="questions per latent")
    test.add_argument("--seed", type=int, default=0)
    test.add_argument("--json", action="store_true", help="numbers as JSON")
    return parser


def _check(got: argparse.Namespace) -> int:
    """0 if everything is as expected, else 1."""
    found = check(
        got.names or organism.checked(),
        got.folder,
        latents=got.latents,
        prompts=got.prompts,
        seed=got.seed,
    )
    if got.json:
        print(json.dumps([asdict(f) | {"met": f.met} for f in found], indent=2))
    else:
        for finding in found:
            _say(line(finding))
    return 0 if all(f.met for f in found) else 1


def line(found: Finding) -> str:
    """One finding as a line of text."""
    interval = f"[{found.low:.1f}, {found.high:.1f}]"
    return (
        f"{'ok  ' if found.met else 'MISS'} {found.organism:<15} {found.measure:<28}"
        f" {found.value:6.1f} {interval:<16} wanted {found.least:g} to {found.most:g}, n {found.n}"
    )


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
