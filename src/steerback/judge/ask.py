"""Questions to a language model, whoever runs it: prompts in, answers read or marked as failed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

UNFIT = ("answers were not in the format", "use a stronger judge model or another --judge-prompt")
"""How a run of answers outside the format is called, and the remedy."""


@dataclass(frozen=True)
class Question(Generic[T_co]):
    """A prompt, and how its answer is read. `read` raises BadAnswer if it is not in the format."""

    prompt: str
    read: Callable[[str], T_co]
    opening: str = ""
    """What the prompt begins with and shares with others, for a model that can read it once."""


@dataclass(frozen=True)
class Failed:
    """A question that got no answer that could be read."""

    why: str
    answer: str = ""
    """The last answer; empty if there was none."""


class Asker(Protocol):
    """A language model with the settings it is asked with."""

    @property
    def model(self) -> str:
        """What the judge's name begins with."""
        ...

    @property
    def settings(self) -> dict[str, str | float | None]:
        """Everything else that can change an answer."""
        ...

    def ask(self, questions: Sequence[Question[T]]) -> list[T | Failed]:
        """One result per question, in order; equal prompts are asked once. Raises UserError when
        asking on makes no sense."""
        ...
