"""What clamps do to the language: a model that can no longer write does not restart either.

Known exactly for the organisms alone, whose every well-formed sentence can be listed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from steerback.averages import cluster_mean
from steerback.events import compare_event
from steerback.organism.grammar import Form, asks, form
from steerback.protocols.base import Analysis, Sheet
from steerback.protocols.clamping import Contrast, forest
from steerback.protocols.twins import paired
from steerback.records import Record
from steerback.stats import Mean, Outcome, cluster_rate, compare, points

MALFORMED = "malformed"
"""The measure: a text with at least one sentence that fits no template of the corpus."""

Forms = Mapping[str, Form]
"""Trial key to what its text is made of."""


def damage(
    stored: Mapping[str, Sequence[Record]], pushed: Sequence[Contrast], alone: Sequence[Contrast]
) -> Analysis:
    """`stored`: records by arm. `pushed`, `alone`: what is compared, with and without the push.

    Nothing for questions of another world than the organisms': their language has no list.
    """
    every = [r for each in stored.values() for r in each]
    if not every or not all(asks(r.trial.question) for r in every):
        return Analysis()
    forms = {r.trial.key: _form(r) for r in every}

    def malformed(o: Outcome) -> bool:
        return forms[o.trial_key].malformed > 0

    compared = tuple(
        (title, compare_event(a, b, malformed, MALFORMED)) for title, a, b in (*alone, *pushed)
    )
    intact = tuple(_intact(pushed, forms))
    sheets = (_by_arm(stored, forms), *([_restarts(intact)] if intact else []))
    figure = forest("What clamping does to the language", compared, MALFORMED)
    return Analysis(comparisons=compared, sheets=sheets, charts=figure)


def _form(record: Record) -> Form:
    return form(record.generation.text, record.generation.finish_reason == "length")


def _by_arm(stored: Mapping[str, Sequence[Record]], forms: Forms) -> Sheet:
    rows = tuple(
        (
            arm,
            len(each),
            cluster_rate([f.malformed > 0 for f in found], clusters),
            _share(found, clusters),
        )
        for arm, each in stored.items()
        if each
        for found in [[forms[r.trial.key] for r in each]]
        for clusters in [[r.trial.cluster for r in each]]
    )
    return Sheet(
        "Sentences that fit no template",
        ("arm", "texts", "texts with one", "of sentences, %"),
        rows,
        (
            "the corpus has 24 templates and ten restart phrases; a last sentence that the token limit "
            "cut off is not counted",
            "intervals resample directions; of arms that nothing is added to, questions",
        ),
    )


def _share(forms: Sequence[Form], clusters: Sequence[str]) -> Mean:
    """Malformed sentences over all, in per cent: the mean over sentences, each in its text's cluster."""
    values = np.concatenate([np.arange(f.sentences) < f.malformed for f in forms])
    names = [c for f, c in zip(forms, clusters, strict=True) for _ in range(f.sentences)]
    return cluster_mean(100 * values.astype(np.float64), names)


def _intact(
    pushed: Sequence[Contrast], forms: Forms
) -> Iterable[tuple[str, int, float, float, Mean]]:
    """Contrasts over the pairs of which neither text has a malformed sentence."""
    for title, a, b in pushed:
        before, after = ([o for o in x if not forms[o.trial_key].malformed] for x in (a, b))
        if paired(before, after):
            c = compare(before, after, "multi_attempt")
            yield title, c.pairs, 100 * c.a, 100 * c.b, points(c.difference, c.measure)


def _restarts(rows: tuple[tuple[str, int, float, float, Mean], ...]) -> Sheet:
    return Sheet(
        "Multi-attempt rate where neither text is malformed",
        ("what", "pairs", "without, %", "with, %", "difference, points"),
        rows,
        (
            "pairs of trials; without, with: the arm compared with, and the arm",
            "both texts were chosen by what came of them: a check, not an effect of its own",
        ),
    )
