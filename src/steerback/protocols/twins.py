"""Arms whose trials are twins although their steering differs: paired by question and seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from steerback.records import Records
from steerback.stats import Comparison, Outcome, compare

Arms = Mapping[str, Sequence[Outcome]]


def twins(
    records: Records, protocol: str, arm: str, directions: Mapping[int, str]
) -> list[Outcome]:
    """Outcomes of an arm, clustered by the direction that each trial's seed belongs to.

    `directions`: seed -> direction. A trial that is not steered, or steered by another direction than
    the one it is about, would else fall into a cluster and a pair of its own.
    """
    return [
        replace(
            r.outcome,
            cluster=directions[r.trial.seed],
            pair=f"{r.trial.question}/{r.trial.seed}",
        )
        for r in records.of(protocol, arm)
        if r.trial.seed in directions
    ]


def arms_of(
    records: Records, protocol: str, arms: Sequence[str], directions: Mapping[int, str]
) -> dict[str, list[Outcome]]:
    """The `twins` of those of the arms that are stored, in the order given."""
    stored = {arm for arm, _ in records.arms(protocol)}
    return {a: twins(records, protocol, a, directions) for a in arms if a in stored}


def comparisons(
    arms: Arms, against: Sequence[tuple[str, str]], measures: Sequence[str]
) -> Iterator[tuple[str, Comparison]]:
    """`against`: (arm, the arm it is compared with). Contrasts that the run has not come to are left
    out."""
    for arm, base in against:
        if paired(arms.get(base, ()), arms.get(arm, ())):
            for measure in measures:
                yield f"{arm}, against {base}", compare(arms[base], arms[arm], measure)


def paired(a: Sequence[Outcome], b: Sequence[Outcome]) -> bool:
    """Whether any trial of one arm has a twin in the other."""
    return not {o.pair for o in a}.isdisjoint(o.pair for o in b)
