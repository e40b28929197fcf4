"""Which interventions are in force on which token, for sequences that are read whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from steerback import steer
from steerback.engine.base import Site
from steerback.types import Intervention


def in_force(interventions: Sequence[Intervention], at: int) -> tuple[Intervention, ...]:
    """Interventions on response token `at` (negative: a token of the prompt)."""
    return tuple(i for i in interventions if i.start is None or at >= i.start >= 0)


def later_starts(interventions: Sequence[Intervention], at: int) -> list[int]:
    """Response positions after `at` at which an intervention sets in, ascending."""
    return sorted({i.start for i in interventions if i.start is not None and i.start > at})


class Span(NamedTuple):
    """One row of a padded batch: `end` tokens, of which the response begins at `first`."""

    interventions: tuple[Intervention, ...]
    first: int
    end: int

    def states(self) -> list[tuple[int, int, tuple[Intervention, ...]]]:
        """Runs [start, stop) of tokens that share the interventions in force."""
        starts = [i.start for i in self.interventions if i.start is not None]
        cuts = {0, self.end, *(self.first + s for s in starts if self.first + s < self.end)}
        edges = sorted(cuts)
        return [(a, b, in_force(self.interventions, a - self.first)) for a, b in pairwise(edges)]


def sequence_sites(packer: steer.Packer, spans: Sequence[Span], length: int) -> dict[int, Site]:
    """Sites for a pass over [rows * length, d_model], rows padded on the right to `length`.

    A token belongs to a state, the set of interventions in force on it. States are few, so the edit
    is packed over states and taken per token.
    """
    rows: list[steer.Row] = [()]
    index = np.zeros((len(spans), length), np.int64)
    for r, span in enumerate(spans):
        for start, stop, active in span.states():
            if active:
                index[r, start:stop] = len(rows)
                rows.append(active)
    if len(rows) == 1:
        return {}
    flat = torch.from_numpy(index.reshape(-1)).to(packer.device)

    def site(edit: steer.Edit) -> Callable[[Tensor], Tensor]:
        taken = edit.take(flat, len(flat))
        return lambda h: steer.apply(h, taken)

    return {layer: site(edit) for layer, edit in packer.pack(rows).items()}
