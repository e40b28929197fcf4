"""What keeps a judge from costing more than it should: patience, a cap on calls, waits between tries."""

from __future__ import annotations

import random
from dataclasses import dataclass

from steerback.errors import UserError


@dataclass
class Streak:
    """Failures in a row, over all batches of one judge. At `limit` it stops the run."""

    limit: int
    what: str
    """How a failure is called: "calls failed", "answers were not in the format"."""
    remedy: str
    count: int = 0

    def good(self) -> None:
        self.count = 0

    def bad(self, judge: str, why: str) -> None:
        """Raises UserError when there were too many."""
        self.count += 1
        if self.count >= self.limit:
            raise UserError(
                f"judge {judge}: {self.count} {self.what} in a row, the last because {why}; "
                f"{self.remedy}, then run the same command again: what is stored stays"
            )


@dataclass
class Cap:
    """The most calls that one judge may make, tries and repeated questions included."""

    limit: int | None
    used: int = 0

    @property
    def reached(self) -> bool:
        return self.limit is not None and self.used >= self.limit

    def take(self, judge: str) -> None:
        """Count one call. Raises UserError instead when none is left."""
        if self.reached:
            raise UserError(
                f"judge {judge}: the cap of {self.limit} calls is reached; verdicts and answers so "
                "far are kept; raise the cap and run the same command again"
            )
        self.used += 1


@dataclass(frozen=True)
class Backoff:
    """Waits before the next try: exponential, with full jitter (uniform between 0 and the bound)."""

    tries: int = 6
    first: float = 1.0
    """Bound of the first wait (seconds)."""
    most: float = 60.0

    def __post_init__(self) -> None:
        if self.tries < 1:
            raise UserError(f"judge tries is {self.tries}; it must be 1 or more")

    def wait(self, failures: int, hint: float | None = None) -> float:
        """Seconds to wait after so many failures (1 or more); at least what the server hints at."""
        bound = min(self.most, self.first * 2 ** (failures - 1))
        return max(random.uniform(0, bound), min(hint or 0.0, self.most))
