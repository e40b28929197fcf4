"""What an intervention does to the residual stream: pure maths on [rows, d_model].

For a row h, an SAE with activations f_k(h) and decoder rows W_dec[k], added latents A with strengths
s, clamped latents C with values v:

    h' = h + sum_{k in A} s_k W_dec[k] + sum_{k in C} (v_k - f_k(h)) W_dec[k]

f_k is read on the incoming h, so a latent in both sets counts as v_k + s_k (kind "clamp"; for kind
"clamp-after" it is read on h + sum_{k in A} s_k W_dec[k], so that the clamp has the last word).
This equals encoding all latents, editing those in A and C, decoding, and adding back the
reconstruction error, because the unedited latents and the error cancel; it costs |A| + |C| rows
instead of two passes through the dictionary. A decoder row enters an SAE with input normalisation
through `Source.output_scale(h)`.

`apply` is the one function that every engine calls. A batch is heterogeneous: each row has its own
interventions, packed by `pack` into the few tensors of an `Edit`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from steerback.errors import UserError, nearest
from steerback.sae import LatentReader, Source
from steerback.types import Intervention

Row = Sequence[Intervention]
"""The interventions in force on one row."""

COLUMNS = 16
"""Latents are read at least so many at once: a product of few columns takes other code, which rounds
differently, and which latents are read together depends on the batch."""


BANKS_KEPT = 4
"""Sets of clamped latents of which the tensors are kept from one batch to the next."""


def widened(latents: Sequence[int]) -> list[int]:
    """The latents, and the first of them again until there are COLUMNS."""
    return [*latents, *list(latents[:1]) * (COLUMNS - len(latents))]


@dataclass
class Addition:
    """Directions of one source that are added, already summed over each row's latents."""

    source: Source
    delta: Tensor
    """[rows, d_model]"""


@dataclass
class Bank:
    """All latents of one SAE that some row clamps; a row's own share is marked in `mask`."""

    source: Source
    reader: LatentReader
    directions: Tensor
    """[latents, d_model]"""
    mask: Tensor
    """[rows, latents]: 1 where the row clamps the latent, else 0."""
    target: Tensor
    """[rows, latents]: the clamped value where mask is 1, else 0."""
    after: bool = False
    """Whether activations are read after the additions."""

    @property
    def kind(self) -> tuple[str, tuple[int, ...], bool]:
        return self.source.name, self.reader.indices, self.after


@dataclass
class Edit:
    """Everything that happens at one layer to a batch of rows."""

    rows: int
    constant: Tensor | None = None
    """[rows, d_model]: additions of sources whose decoder rows enter unscaled."""
    scaled: list[Addition] = field(default_factory=list)
    banks: list[Bank] = field(default_factory=list)

    @property
    def kind(self) -> tuple[object, ...]:
        """Edits of one kind differ only in their rows."""
        return (
            self.constant is not None,
            tuple(a.source.name for a in self.scaled),
            tuple(b.kind for b in self.banks),
        )

    def write(self, index: Tensor, new: Edit) -> None:
        """Replace rows `index` [new.rows] in place by those of an edit of the same kind."""
        if self.constant is not None and new.constant is not None:
            self.constant[index] = new.constant
        for old, fresh in zip(self.scaled, new.scaled, strict=True):
            old.delta[index] = fresh.delta
        for bank, other in zip(self.banks, new.banks, strict=True):
            bank.mask[index] = other.mask
            bank.target[index] = other.target

    def take(self, index: Tensor | slice, rows: int) -> Edit:
        """The edit of `rows` rows of this one: copies for an index [rows], views for a slice."""
        return Edit(
            rows=rows,
            constant=None if self.constant is None else self.constant[index],
            scaled=[Addition(a.source, a.delta[index]) for a in self.scaled],
            banks=[
                Bank(b.source, b.reader, b.directions, b.mask[index], b.target[index], b.after)
                for b in self.banks
            ],
        )


def apply(h: Tensor, edit: Edit) -> Tensor:
    """h' of the equation above; h: [rows, d_model], left unchanged. Same dtype out as in."""
    out = h if edit.constant is None else h + edit.constant
    for addition in edit.scaled:
        scale = addition.source.output_scale(h)
        out = out + (addition.delta if scale is None else scale.to(h.dtype) * addition.delta)
    added = out
    for bank in edit.banks:
        seen = added if bank.after else h
        # (v - f) where the row clamps, 0 elsewhere: target is already masked
        change = torch.addcmul(bank.target, bank.reader(seen), bank.mask, value=-1)
        scale = bank.source.output_scale(seen)
        if scale is not None:
            change = change * scale.to(change.dtype)
        out = torch.addmm(out, change.to(out.dtype), bank.directions)
    return out


def _scales(source: Source) -> bool:
    """Whether the source's directions enter the stream with a factor that depends on the input."""
    return source.output_scale(torch.ones(1, source.d_model)) is not None


class Packer:
    """Turns the interventions of rows into `Edit` tensors; holds only the directions in use.

    `norms` gives the median residual-stream norm per layer, for interventions in units of it.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        norms: Mapping[int, float] | None = None,
    ) -> None:
        self.sources = sources
        self.device = torch.device(device)
        self.dtype = dtype
        self.norms = {} if norms is None else norms
        self._directions: dict[tuple[str, int], Tensor] = {}
        self._read: dict[tuple[str, tuple[int, ...]], tuple[LatentReader, Tensor]] = {}

    def source(self, name: str) -> Source:
        if name not in self.sources:
            hint = nearest(name, self.sources)
            raise UserError(f"unknown SAE or vector set {name!r}: {hint}")
        return self.sources[name]

    def direction(self, name: str, index: int) -> Tensor:
        """[d_model] on the device, in float32."""
        key = (name, index)
        if key not in self._directions:
            self._directions[key] = self.source(name).directions([index])[0].to(self.device)
        return self._directions[key]

    def prefetch(self, interventions: Sequence[Intervention]) -> None:
        """Read all directions that will be needed in one pass over each source."""
        wanted: dict[str, set[int]] = {}
        for i in interventions:
            if (i.source, i.index) not in self._directions:
                wanted.setdefault(i.source, set()).add(i.index)
        for name, indices in wanted.items():
            order = sorted(indices)
            rows = self.source(name).directions(order).to(self.device)
            self._directions.update({(name, k): rows[j] for j, k in enumerate(order)})

    def check(self, rows: Sequence[Row]) -> None:
        """Raise the UserError that packing any of these rows would raise, and read what they need."""
        distinct = {i for row in rows for i in row}
        self.prefetch(sorted(distinct, key=lambda i: (i.source, i.index)))
        clamps: dict[str, set[int]] = {}
        for i in distinct:
            if i.kind != "add":
                clamps.setdefault(i.source, set()).add(i.index)
            else:
                self.strength(i)
        for name, indices in clamps.items():
            self.source(name).reader(sorted(indices))
        for row in {tuple(row) for row in rows}:
            sites = Counter((i.source, i.index, i.layer) for i in row if i.kind != "add")
            for (source, index, layer), times in sites.items():
                if times > 1:
                    raise UserError(f"{source}:{index} is clamped twice at layer {layer}")

    def strength(self, i: Intervention) -> float:
        """The value in raw units: the factor on the direction as stored."""
        if i.unit == "raw":
            return i.value
        if i.layer not in self.norms:
            raise UserError(
                f"intervention on {i.source}:{i.index}: unit 'resid' needs the median residual norm "
                f"of layer {i.layer}, which was not measured; use unit 'raw' or measure it first"
            )
        norm = float(self.direction(i.source, i.index).norm())
        if norm == 0:
            raise UserError(
                f"{i.source}:{i.index} is a zero direction: it cannot steer; choose another"
            )
        return i.value * self.norms[i.layer] / norm

    def pack(self, rows: Sequence[Row]) -> dict[int, Edit]:
        """One `Edit` per layer that any row touches; every edit covers all the rows, in order."""
        self.prefetch([i for row in rows for i in row])
        layers = sorted({i.layer for row in rows for i in row})
        return {
            layer: self._edit([[i for i in row if i.layer == layer] for row in rows])
            for layer in layers
        }

    def _edit(self, rows: Sequence[Row]) -> Edit:
        edit = Edit(rows=len(rows))
        for name in sorted({i.source for row in rows for i in row}):
            source = self.source(name)
            own = [[i for i in row if i.source == name] for row in rows]
            delta = self._delta(own, source.d_model)
            if delta is not None:
                if _scales(source):
                    edit.scaled.append(Addition(source, delta))
                else:
                    edit.constant = delta if edit.constant is None else edit.constant + delta
            banks = [self._bank(source, own, after) for after in (False, True)]
            edit.banks += [bank for bank in banks if bank is not None]
        return edit

    def _delta(self, rows: Sequence[Row], d_model: int) -> Tensor | None:
        """[rows, d_model]: sum of the row's strengths times directions; None if nothing is added."""
        pairs = [(r, i) for r, row in enumerate(rows) for i in row if i.kind == "add"]
        if not pairs:
            return None
        where = torch.tensor([r for r, _ in pairs], device=self.device)
        strengths = torch.tensor([self.strength(i) for _, i in pairs], device=self.device)
        directions = torch.stack([self.direction(i.source, i.index) for _, i in pairs])
        delta = torch.zeros(len(rows), d_model, device=self.device)
        delta.index_add_(0, where, strengths[:, None] * directions)
        return delta.to(self.dtype)

    def _bank(self, source: Source, rows: Sequence[Row], after: bool) -> Bank | None:
        kind = "clamp-after" if after else "clamp"
        clamps = [(r, i) for r, row in enumerate(rows) for i in row if i.kind == kind]
        if not clamps:
            return None
        latents = widened(sorted({i.index for _, i in clamps}))
        column = {k: latents.index(k) for k in set(latents)}
        mask = np.zeros((len(rows), len(latents)), np.float32)
        target = np.zeros_like(mask)
        for r, i in clamps:
            mask[r, column[i.index]] = 1
            target[r, column[i.index]] = i.value
        reader, directions = self._clamped(source, latents)
        return Bank(
            source=source,
            reader=reader,
            directions=directions,
            mask=torch.from_numpy(mask).to(self.device),
            target=torch.from_numpy(target).to(self.device),
            after=after,
        )

    def _clamped(self, source: Source, latents: Sequence[int]) -> tuple[LatentReader, Tensor]:
        """What reads these latents and what they add, [latents, d_model]. The last few are kept: trial
        after trial clamps the same ones."""
        key = (source.name, tuple(latents))
        if key not in self._read:
            rows = torch.stack([self.direction(source.name, k) for k in latents])
            kept = list(self._read.items())[1 - BANKS_KEPT :]
            reader = source.reader(latents).to(self.device)
            self._read = dict(kept) | {key: (reader, rows.to(self.dtype))}
        return self._read[key]
