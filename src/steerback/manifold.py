"""Where unsteered text lives in the residual stream, and how far a token is from it.

From tokens h of unsteered answers, with mean m and covariance S = sum_i l_i u_i u_i^T:

    mahalanobis   sqrt((h - m)^T (S + e I)^-1 (h - m))    e = SHRINKAGE tr(S) / d_model
    outside       |(h - m) - P (h - m)|                    P: onto the first components u_i

P keeps the least number of components that hold `share` of the variance. Both are divided by their
median over unsteered tokens that the fit has not seen: 1 is what unsteered text is like.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steerback.errors import UserError

Floats = NDArray[np.float64]
DISTANCES = ("mahalanobis", "outside")
SHRINKAGE = 1e-3


@dataclass(frozen=True)
class Manifold:
    """The fit; see `fit`."""

    mean: Floats
    """[d_model]"""
    basis: Floats
    """[d_model, d_model]: components in columns, the first explains most."""
    variance: Floats
    """[d_model], of each component, with the shrinkage added."""
    kept: int
    """Components that span the subspace."""
    typical: Floats
    """[2]: median raw distance of unseen unsteered tokens."""

    def distances(self, h: NDArray[np.float32]) -> NDArray[np.float32]:
        """h: [tokens, d_model] -> [tokens, 2], in the order of DISTANCES."""
        return (_raw(self, h) / self.typical).astype(np.float32)


def fit(
    seen: Sequence[NDArray[np.float32]], unseen: Sequence[NDArray[np.float32]], share: float = 0.9
) -> Manifold:
    """Fit to texts [tokens, d_model] and scale by others. Raises UserError where there is no text."""
    if not any(map(len, seen)) or not any(map(len, unseen)):
        raise UserError(
            "geometry: fewer than two unsteered answers to learn from; run baseline with more prompts"
        )
    tokens = np.concatenate(seen).astype(np.float64)
    mean = tokens.mean(axis=0)
    covariance = (tokens - mean).T @ (tokens - mean) / max(1, len(tokens) - 1)
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    total = float(values.sum())
    kept = int(np.searchsorted(np.cumsum(values), share * total)) + 1 if total else 1
    shrink = max(SHRINKAGE * total / len(values), 1e-12)
    bare = Manifold(mean, vectors, values + shrink, min(kept, len(values)), np.ones(2))
    raw = _raw(bare, np.concatenate(unseen))
    typical = np.maximum(np.median(raw, axis=0), 1e-12)
    return Manifold(bare.mean, bare.basis, bare.variance, bare.kept, typical)


def _raw(manifold: Manifold, h: NDArray[np.float32]) -> Floats:
    along = (h.astype(np.float64) - manifold.mean) @ manifold.basis
    mahalanobis = np.sqrt((along**2 / manifold.variance).sum(axis=1))
    outside = np.sqrt((along[:, manifold.kept :] ** 2).sum(axis=1))
    return np.stack([mahalanobis, outside], axis=1)
