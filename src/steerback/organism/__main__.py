"""`python -m steerback.organism train NAME` makes an organism; `card NAME` writes its card."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from steerback.errors import UserError
from steerback.organism import train
from steerback.organism.card import write_card


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m steerback.organism")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("train", help="make an organism from its recipe")
    verb.add_argument("name")
    verb.add_argument("--out", type=Path, default=Path("organisms"), help="where to write it")
    verb.add_argument("--work", type=Path, help="checkpoints of finished stages (default OUT/work)")
    verb.add_argument("--seed", type=int, help="instead of the recipe's own")
    verbs.add_parser("card", help="write a packaged organism's card").add_argument("name")
    got = parser.parse_args(arguments)
    try:
        if got.verb == "card":
            print(write_card(got.name))
            return 0
        train(got.name, got.out, got.work, got.seed, lambda line: print(line, flush=True))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
