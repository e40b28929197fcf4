"""How often a restart would look like an improvement by chance.

Restarted trials had low first attempts, so the first attempt of any other trial beats theirs more
often than not. For a restarted trial i, the chance level is the share of other trials j whose first
attempt scores strictly above that of i (a tie is no improvement, here as in the rate it is set
against). The mean over restarted trials is computed exactly, from ranks; nothing is resampled.

pool "all": j is any other trial (of any direction). pool "direction": j is another trial of the same
direction, which also takes out how hard the direction is; trials alone in their direction drop out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steerback.stats.bootstrap import Floats, Ints, ratio, sum_by_cluster


@dataclass(frozen=True)
class ChanceAll:
    """The chance level over all other trials, as a function of cluster counts."""

    order: Ints
    """[n] cluster number of each trial, sorted by first score."""
    restarted: Ints
    """[r] position in `order` of each restarted trial."""
    beaten_to: Ints
    """[r] how many trials score at most as high as each restarted one."""
    restarts: Floats
    """[clusters] restarted trials of each."""

    @classmethod
    def of(cls, first: Floats, multi: Floats, codes: Ints, n_clusters: int) -> ChanceAll:
        """`first` [n] scores, `multi` [n] 0 or 1, `codes` [n] cluster numbers."""
        by_score = np.lexsort((codes, first))
        restarted = np.flatnonzero(multi[by_score])
        ranked = first[by_score]
        return cls(
            order=codes[by_score],
            restarted=restarted,
            beaten_to=np.searchsorted(ranked, ranked[restarted], side="right").astype(np.int64),
            restarts=sum_by_cluster(codes, n_clusters, multi),
        )

    def __call__(self, counts: Floats) -> Floats:
        """counts [b, clusters] -> chance level [b]; NaN where no restarted trial was drawn.

        A trial is never set against copies of itself: they leave the denominator.
        """
        weights = counts[:, self.order]
        below = np.zeros((len(counts), weights.shape[1] + 1))
        np.cumsum(weights, axis=1, out=below[:, 1:])
        total = below[:, -1:]
        own = weights[:, self.restarted]
        wins = (own * (total - below[:, self.beaten_to])).sum(axis=1)
        pairs = (counts @ self.restarts) * total[:, 0] - np.square(counts) @ self.restarts
        return ratio(wins, pairs)


@dataclass(frozen=True)
class ChanceDirection:
    """The chance level within the direction, as a function of cluster counts."""

    wins: Floats
    """[clusters] sum over restarted trials of the share of its other trials that beat them."""
    restarts: Floats
    """[clusters] restarted trials that have another trial in their direction."""

    @classmethod
    def of(cls, first: Floats, multi: Floats, codes: Ints, n_clusters: int) -> ChanceDirection:
        """`first` [n] scores, `multi` [n] 0 or 1, `codes` [n] cluster numbers."""
        others = np.bincount(codes, minlength=n_clusters)[codes] - 1
        counted = multi * (others > 0)
        share = counted * share_within(first, codes)
        return cls(
            wins=sum_by_cluster(codes, n_clusters, share),
            restarts=sum_by_cluster(codes, n_clusters, counted),
        )

    def __call__(self, counts: Floats) -> Floats:
        """counts [b, clusters] -> chance level [b]; NaN where no restarted trial was drawn."""
        return ratio(counts @ self.wins, counts @ self.restarts)


def share_within(first: Floats, codes: Ints) -> Floats:
    """[n]: share of the other trials of its direction that begin above each trial; 0 if it is alone.

    `first` [n] scores, `codes` [n] cluster numbers.
    """
    by_cluster = np.lexsort((first, codes))
    code, score = codes[by_cluster], first[by_cluster]
    size = np.bincount(codes)
    end = np.cumsum(size)[code]
    # Last trial of the same cluster with the same score: the ones after it win.
    change = np.flatnonzero((np.diff(code) != 0) | (np.diff(score) != 0)) + 1
    stops = np.append(change, len(code))
    ties_end = stops[np.searchsorted(stops, np.arange(len(code)), side="right")]
    share = np.empty(len(code))
    share[by_cluster] = (end - ties_end) / np.maximum(size[code] - 1, 1)
    return share
