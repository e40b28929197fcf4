"""What protocols that clamp the detectors share: their arms, and what is compared with what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from steerback.protocols.base import Direction, Inputs
from steerback.protocols.charts import Dots, Series
from steerback.protocols.twins import paired
from steerback.stats import Comparison, Outcome, points
from steerback.types import Intervention, Kind

DETECTORS, RANDOM = "detectors", "random set"

Contrast = tuple[str, Sequence[Outcome], Sequence[Outcome]]
"""(what is compared, the arm it is compared with, the arm)"""


def clamped_arms(inputs: Inputs) -> dict[str, list[int]]:
    """The latents that each arm holds at zero."""
    sets = inputs.found["matching"]["sets"]
    return {DETECTORS: inputs.found["detectors"]["chosen"]} | {
        f"{RANDOM} {n}": one for n, one in enumerate(sets, 1)
    }


def clamps(inputs: Inputs, latents: Sequence[int], add: Intervention) -> list[Intervention]:
    """Latents of the SAE, held at zero at the same layer.

    A clamp after the addition leaves out the steered latent: it would take the steering away.
    """
    after = inputs.found["matching"].get("clamp") == "after"
    kind: Kind = "clamp-after" if after else "clamp"
    held = [k for k in latents if not (after and (add.source, add.index) == (inputs.sae, k))]
    where = _where(add.positions)
    return [Intervention(kind, inputs.sae, k, 0.0, add.layer, positions=where) for k in held]


def clamps_alone(
    inputs: Inputs, latents: Sequence[int], direction: Direction
) -> list[Intervention]:
    """The same where the direction would be added, without the push."""
    where = _where(direction.positions)
    return [
        Intervention("clamp", inputs.sae, k, 0.0, direction.layer, positions=where) for k in latents
    ]


def _where(positions: str) -> str:
    return "all" if positions == "all" else "generated"


def contrasts(arms: Mapping[str, Sequence[Outcome]], base: str, sample: str = "") -> list[Contrast]:
    """Each clamped arm against the arm `base`, and the detectors against the random sets; those for
    which the run has come to both arms. `sample` is added to the arms' names in the titles.

    The base cancels from (detectors - base) - (random - base), so that the specific effect is detectors
    minus random, over the same pairs. There each pair stands once for every set.
    """
    return [c for c in _every(arms, base, sample) if paired(c[1], c[2])]


def forest(
    title: str, compared: Sequence[tuple[str, Comparison]], measure: str
) -> tuple[Dots, ...]:
    """A figure of the differences in one measure; none where there are none."""
    found = [
        (what.partition(", against")[0], points(c.difference, measure))
        for what, c in compared
        if c.measure == measure
    ]
    if not found:
        return ()
    caption = (
        "Differences over paired trials, 95% intervals clustered by direction. The random sets say how "
        "far any clamp moves the rate; specific: detectors minus random sets."
    )
    rows, values = zip(*found, strict=True)
    return (Dots(title, caption, "difference, points", rows, (Series(measure, values),), mark=0.0),)


def _every(arms: Mapping[str, Sequence[Outcome]], base: str, sample: str) -> Iterator[Contrast]:
    start, detectors = arms.get(base, ()), arms.get(DETECTORS, ())
    sets = {a: o for a, o in arms.items() if a.startswith(RANDOM)}
    n = len(sets)
    pooled = [o for i, one in enumerate(sets.values()) for o in _renamed(one, i)]
    yield f"{DETECTORS}{sample}, against {base}", start, detectors
    for arm, one in sets.items():
        yield f"{arm}{sample}, against {base}", start, one
    yield f"random sets together{sample}, against {base}", _times(start, n), pooled
    yield f"specific: {DETECTORS}{sample}, against random sets", pooled, _times(detectors, n)


def _renamed(outcomes: Sequence[Outcome], number: int) -> list[Outcome]:
    return [replace(o, pair=f"{o.pair}/{number}") for o in outcomes]


def _times(outcomes: Sequence[Outcome], n: int) -> list[Outcome]:
    """A trial for each set that it is compared with; clusters are resampled whole, copies with them."""
    return [o for number in range(n) for o in _renamed(outcomes, number)]
