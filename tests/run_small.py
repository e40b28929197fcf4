"""A small run in a process of its own, to be killed."""

from __future__ import annotations

from pathlib import Path

from runs import small

# imported here so that a fork server can hold them ready: a child then starts in no time
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: F401

import steerback.lab
from steerback.run import run


def main(folder: Path) -> None:
    steerback.lab.BATCH = 4
    run(small(folder))
