"""What keeps a row's bits the same whoever sits beside it, in float32 on a CPU.

A matrix library takes other code for few rows than for many, and the codes round differently. From
some number of rows on, the bits of a row no longer depend on how many there are. So every product of
a pass runs over a multiple of that number, `Block.rows`, measured on the model's own weights when
it is loaded. Prompts are padded to a length that depends on the prompt alone, because attention
adds up over the padded length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = (16, 32, 64)
"""Row counts that are tried, least first. Vectorised kernels take 16 or 32 numbers at once, so
multiples of these leave no remainder to a scalar loop that would round differently."""

LENGTH = 32
"""Prompts are padded to a multiple of this many tokens."""

WIDEST = 2**14
"""Output columns of a probed product; the rest of a vocabulary is left out."""


class Block(NamedTuple):
    """How many rows a product must have."""

    rows: int
    """Every product runs over a multiple of so many rows."""
    exact: bool
    """Whether the probe found each row's bits unchanged at all row counts that it tried."""


class Product(NamedTuple):
    """One kind of matrix product of a model."""

    width: int
    """Columns of its input."""
    run: Callable[[Tensor], Tensor]
    """[rows, width] -> [rows, any]"""
    cells: int
    """Weights."""


def linear(weight: Tensor) -> Product:
    """x @ weight.T; weight: [columns, width]"""
    kept = weight[:WIDEST]
    return Product(weight.shape[1], lambda x: F.linear(x, kept), kept.numel())


def _whole(module: nn.Linear) -> Product:
    """A layer whose weights are quantised or elsewhere, which only it can multiply with."""
    return Product(module.in_features, module, module.in_features * module.out_features)


def products(model: nn.Module) -> list[Product]:
    """The distinct products of a transformers model: its linear layers, however they store weights."""
    found: dict[tuple[str, tuple[int, ...]], Product] = {}
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Linear) and type(module.weight.data) is Tensor:
            plain = module.weight.is_floating_point() and not module.weight.is_meta
            product = linear(module.weight) if plain else _whole(module)
        elif isinstance(module, nn.Linear):
            product = _whole(module)
        elif type(module).__name__ == "Conv1D" and isinstance(weight, Tensor):
            product = Product(weight.shape[0], module, weight.numel())
        else:
            continue
        assert isinstance(weight, Tensor)
        found.setdefault((type(module).__name__, tuple(weight.shape)), product)
    return list(found.values())


@torch.inference_mode()
def measure(found: Iterable[Product], device: torch.device, dtype: torch.dtype) -> Block:
    """The least block at which all products keep each row's bits; not exact where none does, and
    (1, not exact) where the promise is not made: off the CPU, or in another dtype than float32."""
    if device.type != "cpu" or dtype != torch.float32:
        return Block(1, exact=False)
    found = list(found)
    for rows in ROWS:
        if all(_keeps(product, rows) for product in found):
            return Block(rows, exact=True)
    return Block(ROWS[-1], exact=False)


def _keeps(product: Product, rows: int) -> bool:
    """Whether the first rows come out alike at several multiples of `rows` and in a long prefill."""
    many = 1024 if product.cells <= 2**22 else 256
    generator = torch.Generator().manual_seed(product.width)
    x = torch.randn(many, product.width, generator=generator)
    want = product.run(x)
    counts = sorted({n for m in (1, 2, 3, 4, 5, 8) if (n := m * rows) < many})
    # both ends: rows at the end of a batch may be the ones that are handled apart
    return all(
        torch.equal(product.run(x[:n]), want[:n])
        and torch.equal(product.run(x[many - n :]), want[many - n :])
        for n in counts
    )


def up(n: int, block: int) -> int:
    """The least multiple of `block` that is at least `n`."""
    return -(-n // block) * block


def filled(x: Tensor, block: int) -> Tensor:
    """x [rows, ...] with rows of zeros after it, up to a multiple of `block`."""
    missing = up(len(x), block) - len(x)
    return torch.cat([x, x.new_zeros(missing, *x.shape[1:])]) if missing else x


def padded(length: int, rows: int, context: int) -> int:
    """To how many tokens a sequence is padded, `rows` being the block: a multiple of both, but no
    longer than the context. A sequence that fills the context is not padded."""
    return max(length, min(up(length, max(rows, LENGTH)), context))
