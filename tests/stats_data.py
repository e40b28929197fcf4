"""Simulated trials for the tests of the statistics."""

import numpy as np

from steerback.stats import Outcome


def trial(first, last=None, *, cluster="c", key="t", pair="", thirds=None, degraded=False):
    """A scored trial; `last` None: one attempt. `first` None: missing."""
    return Outcome(
        trial_key=key,
        cluster=cluster,
        missing=first is None,
        n_attempts=0 if first is None else 1 if last is None else 2,
        degraded=degraded,
        first=first,
        last=first if last is None else last,
        thirds=thirds,
        pair=pair,
    )


def arm(seed, clusters, per_cluster, restart=0.3, missing=0.0, spread=15, top=10):
    """Trials whose restarts follow low first scores and are fresh draws; scores 0..`top`: many ties."""
    rng = np.random.default_rng(seed)
    trials = []
    for c in range(clusters):
        centre = rng.normal(50, spread)
        for i in range(per_cluster):
            first, last = np.clip(rng.normal(centre, 25, 2), 0, 100) * top // 100 * 100 / top
            again = rng.random() < restart * (2 - first / 50)
            gone = rng.random() < missing
            trials.append(
                trial(
                    None if gone else float(first),
                    float(last) if again else None,
                    cluster=f"k{c}",
                    key=f"{c}-{i}",
                    pair=f"{c}-{i}",
                    thirds=(float(first), float(last)),
                    degraded=bool(rng.random() < 0.1),
                )
            )
    return trials


def beta_binomial(rng, sizes, rate, icc, sims):
    """Successes [sims, clusters] of clusters of these sizes."""
    q = rng.beta(rate * (1 - icc) / icc, (1 - rate) * (1 - icc) / icc, size=(sims, len(sizes)))
    return rng.binomial(sizes, q)
