"""What a run tells whoever watches it. The silent one is the default of the Python API."""

from __future__ import annotations

from steerback.engine.base import Progress


class Ui:
    """Told of stages and progress; says nothing. `steerback.console` has the one for terminals."""

    def stage(self, title: str) -> None:
        """A new part of the run begins."""

    def progress(self, what: str, progress: Progress) -> None:
        """`progress.done` of `progress.total` trials of `what` are generated."""

    def say(self, line: str) -> None:
        """Something that the user should know."""
