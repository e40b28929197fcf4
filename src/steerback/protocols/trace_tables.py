"""Tables of `traces`: from the stored readings to contrasts with tests over directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from steerback import regions
from steerback.averages import cluster_mean, per_cluster
from steerback.protocols.base import Entry, Sheet
from steerback.protocols.episodes import KINDS
from steerback.regions import OFF_TOPIC, ON_TOPIC
from steerback.stats import Mean, cliffs_delta, cohens_d_paired, holm, paired_t, wilcoxon
from steerback.stats.effects import Alternative

Floats = NDArray[np.float64]
RESTARTED, QUIET, UNSTEERED = KINDS
POOLED, DISTRACTOR = "detectors, pooled", "the steered latent"
WHOLE = len(regions.NAMES)
"""Row of the mean over the whole response, after those of the regions."""
UNITS = "each detector in units of its highest region mean, averaged over detectors"
HOW = {
    "steered": "read teacher-forced, with the steering on",
    "unsteered": "read teacher-forced, with the steering off",
    "generated": "recorded while the texts were generated",
}


class Study:
    """The findings as arrays; a trial that an episode lacks is NaN."""

    def __init__(self, found: Any, before: int) -> None:
        self.found, self.before = found, before
        self.directions: list[str] = [e["direction"] for e in found["episodes"]]
        self.names: list[str] = [*map(str, found["latents"]), DISTRACTOR, POOLED]
        self.own = slice(0, found["detectors"] or len(found["latents"]))
        """Columns that are pooled: the detectors; all latents where none was found."""
        self.means = {kind: self._array(kind, "means") for kind in KINDS}
        """[episodes, regions and whole, latents + distractor + pooled]"""
        self.windows = {kind: self._array(kind, "windows") for kind in KINDS}
        """[episodes, tokens, latents + distractor + pooled]"""
        levels = [_mean_of_known(self.means[RESTARTED][:, r].T) for r in range(WHOLE)]
        highest = np.max(np.where(np.isnan(levels), 0, levels), axis=0)
        self.scale = np.append(np.where(highest > 0, highest, 1.0), 1.0)
        """[latents + distractor + pooled]: highest region mean of each."""
        for part in (self.means, self.windows):
            part.update({kind: self.with_pooled(values) for kind, values in part.items()})

    def _array(self, kind: str, what: str) -> Floats:
        entries = self.found["kinds"][kind]
        empty = np.full(np.shape(self.found["kinds"][RESTARTED][0][what]), np.nan)
        return np.array([empty if e is None else np.array(e[what], np.float64) for e in entries])

    def with_pooled(self, values: Floats) -> Floats:
        """values [..., latents + distractor] with the pooled detectors as one more column."""
        scaled = values[..., self.own] / self.scale[self.own]
        return np.concatenate([values, scaled.mean(axis=-1, keepdims=True)], axis=-1)

    @property
    def matched(self) -> int:
        return sum(e is not None for e in self.found["kinds"][QUIET])

    def label(self, column: int) -> str:
        return str(self.found["labels"].get(self.names[column], ""))

    def title(self, column: int) -> str:
        return " ".join(filter(None, (self.names[column], self.label(column))))

    def mean(self, kind: str, token: int, column: int) -> Mean:
        """Over episodes, at one place of the window."""
        return cluster_mean(self.windows[kind][:, token, column], self.directions)

    def before_restart(self, kind: str) -> Floats:
        """[episodes, columns]: mean over the tokens before the restart; over those alone that the trial
        and its match without a restart both have."""
        known = [~np.isnan(self.windows[k][:, : self.before]) for k in (RESTARTED, QUIET)]
        window = self.windows[kind][:, : self.before]
        if kind != UNSTEERED:
            window = np.where(known[0] & known[1], window, np.nan)
        return np.stack([_mean_of_known(episode.T) for episode in window])


def _mean_of_known(values: Floats) -> Floats:
    """[n, m] -> [n]: mean of what is not NaN; NaN where nothing is known."""
    known = ~np.isnan(values)
    count, total = known.sum(axis=1), np.where(known, values, 0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


# --- tables ----------------------------------------------------------------------------------


def sheets(study: Study, reading: str) -> tuple[Sheet, ...]:
    restarted, unsteered = study.means[RESTARTED], study.means[UNSTEERED]
    note = f"{len(study.directions)} episodes of {len(set(study.directions))} directions; {HOW[reading]}"
    matched = (
        f"mean over the {study.before} tokens before the restart; {study.matched} of "
        f"{len(study.directions)} episodes have a match: same direction and strength, a like score, "
        "never restarted; aligned at the sentence that starts nearest to the token of the restart",
        "no difference: the latent says that the text is off topic, not that a restart comes",
    )
    return (
        _levels(study, note),
        _contrast(
            study,
            "Off topic, against back on topic",
            ("off topic", "on topic"),
            (restarted[:, OFF_TOPIC], restarted[:, ON_TOPIC]),
            "greater",
            ("one-sided: higher off topic",),
        ),
        _contrast(
            study,
            "Off topic, against the unsteered twin",
            ("off topic", "unsteered"),
            (restarted[:, OFF_TOPIC], unsteered[:, OFF_TOPIC]),
            "greater",
            ("the same tokens of the unsteered answer to the same question; one-sided",),
        ),
        _contrast(
            study,
            "Before a restart, and without one",
            (RESTARTED, QUIET),
            (study.before_restart(RESTARTED), study.before_restart(QUIET)),
            "two-sided",
            matched,
        ),
    )


def _levels(study: Study, note: str) -> Sheet:
    """Mean activation by region."""
    values, plain = study.means[RESTARTED], study.means[UNSTEERED]
    rows: list[tuple[Entry, ...]] = []
    for k, name in enumerate(study.names):
        columns = [*(values[:, r, k] for r in range(WHOLE)), plain[:, WHOLE, k]]
        rows.append((name, study.label(k), *(cluster_mean(c, study.directions) for c in columns)))
    return Sheet(
        "Activation by region",
        ("latent", "label", *regions.NAMES, "unsteered, whole"),
        tuple(rows),
        (note, f"pooled: {UNITS}"),
    )


class Significance(NamedTuple):
    """Of differences [episodes], averaged by direction first: tests take rows as independent."""

    d: float | None
    """Cohen's d of the differences."""
    t: float | None
    """p value of the paired t test."""
    rank: float | None
    """p value of Wilcoxon's signed-rank test."""

    @classmethod
    def of(cls, differences: Floats, directions: Sequence[str], side: Alternative) -> Significance:
        rows = per_cluster(differences, directions)
        if len(rows) < 2:
            return cls(None, None, None)
        tests = (paired_t(rows, side).p, wilcoxon(rows, side).p)
        return cls(float(cohens_d_paired(rows)), *map(float, tests))


def _contrast(
    study: Study,
    title: str,
    names: tuple[str, str],
    values: tuple[Floats, Floats],
    side: Alternative,
    notes: tuple[str, ...],
) -> Sheet:
    """Per latent: both means, their difference, effect sizes, tests. values: [episodes, columns] each,
    compared where both are known."""
    rows: list[tuple[Entry, ...]] = []
    ranks: list[float] = []
    for k, name in enumerate(study.names):
        both = ~np.isnan(values[0][:, k] - values[1][:, k])
        a, b = (np.where(both, v[:, k], np.nan) for v in values)
        tests = Significance.of(a - b, study.directions, side)
        means = [cluster_mean(v, study.directions) for v in (a, b, a - b)]
        delta = float(cliffs_delta(a[both], b[both])) if both.any() else None
        rows.append((name, study.label(k), *means, tests.d, delta, tests.t, tests.rank))
        ranks.append(1.0 if tests.rank is None else tests.rank)
    adjusted = [float(p) for p in holm(ranks[study.own])]
    last: list[float | None] = [*adjusted, *[None] * (len(rows) - len(adjusted))]
    whole: tuple[tuple[Entry, ...], ...] = tuple(
        (*row, p) for row, p in zip(rows, last, strict=True)
    )
    return Sheet(
        title,
        ("latent", "label", *names, "difference", "d", "Cliff's delta", *P_VALUES),
        whole,
        (*notes, "tests over directions, each with its mean difference; Holm over the detectors"),
    )


P_VALUES = ("p, paired t", "p, Wilcoxon", "p, Holm")
