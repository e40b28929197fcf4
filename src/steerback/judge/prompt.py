"""What a judge that needs a language model is asked: a template with two places to fill."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

from steerback.errors import UserError
from steerback.judge.base import Request
from steerback.types import stable_hash

PLACES = ("question", "response")
_PLACE = re.compile(r"\{(" + "|".join(PLACES) + r")\}")
_BYTES_PER_TOKEN = 4


@dataclass(frozen=True)
class Prompt:
    """A template that holds {question} and {response}; all other braces are plain text."""

    template: str
    source: str = "packaged"

    def __post_init__(self) -> None:
        for place in PLACES:
            if f"{{{place}}}" not in self.template:
                raise UserError(
                    f"judge prompt {self.source}: {{{place}}} is missing; put it where the "
                    f"{place} is to stand"
                )

    @classmethod
    def load(cls, path: str | Path | None = None) -> Prompt:
        """The packaged prompt, or that of a file. UserError: unreadable, or a place is missing."""
        if path is None:
            packaged = files("steerback").joinpath("data").joinpath("judge_prompt.md")
            return cls(packaged.read_text("utf-8"))
        try:
            return cls(Path(path).read_text("utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise UserError(
                f"judge prompt {path}: cannot be read ({why}); check --judge-prompt"
            ) from None

    @cached_property
    def hash(self) -> str:
        return stable_hash(self.template)

    @cached_property
    def opening(self) -> str:
        """What comes before the first place."""
        return _PLACE.split(self.template, maxsplit=1)[0]

    def fill(self, request: Request) -> str:
        """The text that the judge reads. Braces in the question or response are left alone."""
        values = {"question": request.question, "response": request.response}
        return _PLACE.sub(lambda m: values[m.group(1)], self.template)


def estimate_tokens(text: str) -> int:
    """About how many tokens a text has: 4 bytes each, which is within a fifth for English prose."""
    return -(-len(text.encode("utf-8", "surrogatepass")) // _BYTES_PER_TOKEN)
