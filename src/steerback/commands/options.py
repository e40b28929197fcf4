"""What several commands share: options, and where they print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

# brackets and colons in names, paths and answers are text
out = Console(highlight=False, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, markup=False, emoji=False)

RunFolder = Annotated[Path, typer.Argument(help="Folder of the run.")]
MadeFolder = Annotated[
    Path | None,
    typer.Option(help="Folder that `steerback organism train` wrote to; else the packaged ones."),
]
JudgePrompt = Annotated[
    Path | None, typer.Option("--judge-prompt", help="File with a judge prompt of your own.")
]
QuantizeOption = Annotated[
    str | None, typer.Option(help="Instead of the file's: none, int8, fp8 or int4.")
]
DeviceMapOption = Annotated[
    str | None, typer.Option(help="Instead of the file's: auto, balanced, sequential.")
]
EngineOption = Annotated[
    str | None, typer.Option(help="Instead of the file's: hf, vllm, ray or http://HOST:PORT.")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print numbers as JSON instead.")]
