"""Does each packaged organism still show what it was made to show?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from steerback import organism
from steerback.errors import UserError, nearest
from steerback.organism.corpus import read_data
from steerback.types import Rate

if TYPE_CHECKING:
    from steerback.protocols.base import Analysis
    from steerback.stats import Mean
    from steerback.ui import Ui

_SCORES = ("first_score", "score_delta")
"""Measures that are scores of 100 already; all others are shares, shown in per cent."""


@dataclass(frozen=True)
class Finding:
    """One number of one organism beside what it is to be."""

    organism: str
    measure: str
    """`protocol.measure`"""
    value: float
    low: float
    high: float
    """Ends of the 95% interval, clustered by direction."""
    n: int
    least: float
    most: float

    @property
    def met(self) -> bool:
        """Whether the estimate itself lies in the range; the interval says how sure that is."""
        return self.least <= self.value <= self.most


def check(
    names: Sequence[str],
    folder: Path,
    *,
    latents: int = 24,
    prompts: int = 30,
    seed: int = 0,
    ui: Ui | None = None,
) -> list[Finding]:
    """Run baseline and ESR on each organism, stored under `folder`, and compare with what it must show.

    A check that was stopped goes on where it was. Raises UserError for an organism of which nothing is
    expected.
    """
    expected = read_data("expected.toml")
    for name in names:
        organism.path(name)
        if name not in expected:
            raise UserError(f"nothing is expected of organism {name!r}; {nearest(name, expected)}")
    return [
        finding
        for name in names
        for finding in compare(
            name, measure(name, folder, latents, prompts, seed, ui), expected[name]
        )
    ]


def measure(
    name: str, folder: Path, latents: int, prompts: int, seed: int, ui: Ui | None
) -> dict[str, Analysis]:
    """The main job on one organism: unsteered and steered, `latents` x `prompts` trials each."""
    from steerback import protocols
    from steerback.config import from_preset
    from steerback.run import run

    amount = {"prompts_per_direction": prompts}
    config = from_preset(
        f"organism-{name}",
        protocols.settings(),
        folder=str(folder / name),
        seed=seed,
        directions={"count": latents},
        settings={"baseline": amount, "esr": amount},
    )
    return run(config, ui)


def compare(
    name: str, found: Mapping[str, Analysis], expected: Mapping[str, Sequence[float]]
) -> list[Finding]:
    out = []
    for key, (least, most) in expected.items():
        protocol, measure_name = key.split(".")
        (summary,) = found[protocol].summaries
        value, low, high = _hundred(getattr(summary, measure_name), measure_name)
        out.append(Finding(name, key, value, low, high, summary.n, least, most))
    return out


def _hundred(number: Rate | Mean, name: str) -> tuple[float, float, float]:
    value = number.rate if isinstance(number, Rate) else number.value
    scale = 1 if name in _SCORES else 100
    return scale * value, scale * number.low, scale * number.high
