"""`steer.apply` against encode-all, edit, decode, plus the error term."""

from __future__ import annotations

import pytest
import saes
import torch
from test_sae import sae_of

from steerback import steer
from steerback.errors import UserError
from steerback.types import Intervention
from steerback.vectors import VectorSet

KINDS = [
    saes.Naive("relu"),
    saes.Naive("relu", subtract=False),
    saes.Naive("jumprelu"),
    saes.Naive("jumprelu", norm="layer_norm"),
    saes.Naive("relu", norm="constant_norm_rescale"),
    saes.Naive("gated"),
    saes.Naive("topk"),
    saes.Naive("topk", rescale=True),
]


def rows(n: int) -> list[tuple[Intervention, ...]]:
    """Rows that share nothing: nothing, an addition, a clamp, both on one latent, many."""
    kinds: list[tuple[Intervention, ...]] = [
        (),
        (Intervention("add", "test", 3, 2.5, 0),),
        (Intervention("clamp", "test", 7, 0.0, 0),),
        (Intervention("add", "test", 7, -1.5, 0), Intervention("clamp", "test", 7, 2.0, 0)),
        tuple(Intervention("clamp", "test", k, 0.1 * k, 0) for k in range(0, saes.N, 3)),
        (Intervention("add", "test", 1, 1.0, 0), Intervention("add", "test", 1, 2.0, 0)),
        (Intervention("add", "test", 7, 4.0, 0), Intervention("clamp-after", "test", 7, 0.5, 0)),
        (
            Intervention("add", "test", 3, 6.0, 0),
            Intervention("clamp-after", "test", 5, 0.0, 0),
            Intervention("clamp", "test", 2, 0.0, 0),
        ),
    ]
    return [kinds[i % len(kinds)] for i in range(n)]


def naive(sae: saes.Naive, h: torch.Tensor, each: list[tuple[Intervention, ...]]) -> torch.Tensor:
    """Additions and clamps at once, then the clamps that come after them, each a pass of its own."""
    acts = sae.encode(h)
    change = torch.zeros_like(acts)
    added = torch.zeros_like(acts)
    for r, row in enumerate(each):
        for i in row:
            if i.kind == "add":
                change[r, i.index] += i.value
                added[r, i.index] += i.value
            elif i.kind == "clamp":
                change[r, i.index] += i.value - acts[r, i.index]
    seen = sae.encode(sae.edit(h, added))
    out = sae.edit(h, change)
    late = torch.zeros_like(acts)
    for r, row in enumerate(each):
        for i in row:
            if i.kind == "clamp-after":
                late[r, i.index] += i.value - seen[r, i.index]
    # the change of the late clamps enters with the scale of the stream that they read
    return out + sae.edit(sae.edit(h, added), late) - sae.edit(h, added)


@pytest.mark.parametrize("n", saes.SIZES)
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: f"{k.kind}-{k.norm}-{k.subtract}-{k.rescale}")
def test_lean_equals_full(kind: saes.Naive, n: int) -> None:
    packer = steer.Packer({"test": sae_of(kind)})
    h = saes.stream(n)
    before = h.clone()
    each = rows(n)
    edits = packer.pack(each)
    out = steer.apply(h, edits[0]) if edits else h
    torch.testing.assert_close(out, naive(kind, h, each), atol=1e-5, rtol=1e-5)
    assert torch.equal(h, before)


def test_taking_and_writing_rows_equals_packing_them() -> None:
    packer = steer.Packer({"test": sae_of(KINDS[2])})
    each, h = rows(17), saes.stream(17)
    edit = packer.pack(each)[0]
    whole = steer.apply(h, edit)
    index = torch.tensor([4, 4, 0, 16, 9])
    torch.testing.assert_close(steer.apply(h[index], edit.take(index, 5)), whole[index])
    other = packer.pack(each[1:9])[0]
    assert other.kind == edit.kind
    edit.write(torch.arange(8), other)
    torch.testing.assert_close(
        steer.apply(h, edit), steer.apply(h, packer.pack([*each[1:9], *each[8:]])[0])
    )


def test_a_clamp_after_has_the_last_word() -> None:
    """It undoes an addition of its own latent; a clamp that reads the incoming stream does not."""
    packer = steer.Packer({"test": sae_of(KINDS[0])})
    h = saes.stream(17)

    def edited(x: torch.Tensor, *row: Intervention) -> torch.Tensor:
        return steer.apply(x, packer.pack([row] * 17)[0])

    add = Intervention("add", "test", 7, 9.0, 0)
    clamp, after = (Intervention(kind, "test", 7, 0.5, 0) for kind in ("clamp", "clamp-after"))
    torch.testing.assert_close(edited(h, add, after), edited(edited(h, add), clamp))
    torch.testing.assert_close(edited(h, add, clamp), edited(edited(h, clamp), add))
    assert not torch.allclose(edited(h, add, after), edited(h, add, clamp), atol=1e-2)


def test_a_vector_is_added_as_stored() -> None:
    vectors = VectorSet("v", torch.randn(5, saes.D))
    packer = steer.Packer({"v": vectors}, norms={2: 10.0})
    h = saes.stream(2)
    raw, resid = (Intervention("add", "v", 4, 0.5, 2, unit=u) for u in ("raw", "resid"))
    out = steer.apply(h, packer.pack([(raw,), (resid,)])[2]) - h
    torch.testing.assert_close(out[0], 0.5 * vectors.directions([4])[0])
    assert out[1].norm().item() == pytest.approx(5.0, rel=1e-5)


def test_layers_are_packed_apart() -> None:
    packer = steer.Packer({"v": VectorSet("v", torch.randn(5, saes.D))})
    edits = packer.pack(
        [(Intervention("add", "v", 0, 1.0, 3),), (Intervention("add", "v", 1, 1.0, 5),)]
    )
    assert sorted(edits) == [3, 5]
    h = torch.zeros(2, saes.D)
    assert steer.apply(h, edits[3])[1].abs().sum() == 0
    assert steer.apply(h, edits[5])[0].abs().sum() == 0


def test_half_precision_keeps_its_dtype() -> None:
    packer = steer.Packer({"test": sae_of(KINDS[2])}, dtype=torch.bfloat16)
    h = saes.stream(6)
    out = steer.apply(h.bfloat16(), packer.pack(rows(6))[0])
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), naive(KINDS[2], h, rows(6)), atol=0.15, rtol=0.05)


def test_errors_name_the_offender() -> None:
    packer = steer.Packer({"v": VectorSet("v", torch.zeros(5, saes.D))}, norms={0: 1.0})
    with pytest.raises(UserError, match="unknown SAE or vector set 'w'"):
        packer.pack([(Intervention("add", "w", 0, 1.0, 0),)])
    with pytest.raises(UserError, match="v:2 is a zero direction"):
        packer.pack([(Intervention("add", "v", 2, 1.0, 0, unit="resid"),)])
    with pytest.raises(UserError, match="layer 1, which was not measured"):
        packer.pack([(Intervention("add", "v", 2, 1.0, 1, unit="resid"),)])


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("kind", "mul", "use 'add', 'clamp' or 'clamp-after'"),
        ("unit", "norm", "use 'raw' or 'resid'"),
        ("value", float("nan"), "finite"),
        ("index", -1, "count from 0"),
        ("positions", "from:x", "from:N"),
        ("positions", "from:-1", "from:N"),
    ],
)
def test_a_malformed_intervention_is_one_line(field: str, value: object, says: str) -> None:
    good = {"kind": "add", "source": "s", "index": 1, "value": 1.0, "layer": 0}
    with pytest.raises(UserError, match=says) as caught:
        Intervention(**{**good, field: value})
    assert "\n" not in str(caught.value)
