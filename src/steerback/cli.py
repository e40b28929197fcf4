"""The command line: its verbs put together, and what becomes of a mistake."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated, Any

import typer

from steerback import __version__
from steerback.commands import asking, organisms, results, running, vectors
from steerback.commands.options import err
from steerback.errors import UserError
from steerback.finetune import command as finetune

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for verbs in (running, results, asking):
    app.add_typer(verbs.app)
app.add_typer(organisms.app, name="organism")
app.add_typer(vectors.app, name="vectors")
app.add_typer(finetune.app, name="finetune")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"steerback {__version__}")
        raise typer.Exit()


@app.callback()
def _steerback(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Measure whether a language model steers back when it is pushed off course from inside."""


INTERRUPTED = 130
STORED = "interrupted; what is finished is stored, and the same command goes on from there"


def _quiet() -> None:
    """Libraries report to the log, not over our progress bars."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("transformers").setLevel(logging.ERROR)


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line. A user's mistake is one line on standard error and exit code 2."""
    _quiet()
    try:
        # an Exit raised by a command comes back as its code, and so does Ctrl-C
        if code := app(args=arguments, standalone_mode=False):
            if code == INTERRUPTED:
                err.print(STORED)
            sys.exit(code)
    except UserError as error:
        err.print(f"error: {error}", style="bold red", markup=False, soft_wrap=True)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        err.print(STORED)
        sys.exit(INTERRUPTED)
    except Exception as error:
        usage = getattr(error, "format_message", None)
        if usage is None:
            raise
        said = usage()
        help_wanted = said.startswith("Usage:")
        err.print(
            said if help_wanted else f"error: {said}",
            style="" if help_wanted else "bold red",
            soft_wrap=True,
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
