"""The lean form equals encode-all, edit, decode, plus error, for every architecture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from saes import SIZES, D, K, N, Naive, changes, stream
from safetensors.torch import save_file

from steerback.errors import UserError
from steerback.sae import LatentReader, Sae, load_sae
from steerback.sae.readers import (
    JoinedReader,
    JumpReluReader,
    LinearReader,
    Norm,
    NormalisedReader,
    SelectReader,
)
from steerback.sae.spec import Matrix, SaeSpec
from steerback.sae.tensors import MemoryTensors

KINDS = ("relu", "jumprelu", "gated", "topk", "abstopk", "groupmax")
SETTINGS = (
    {},
    {"subtract": False},
    {"norm": "constant_norm_rescale"},
    {"norm": "layer_norm", "subtract": False},
    {"scale": 0.37},
)
LATENTS = [7, 0, 39, 12]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def sae_of(naive: Naive) -> Sae:
    spec = SaeSpec(
        file=MemoryTensors(naive.stored()),
        where="test",
        d_model=D,
        n=N,
        architecture=naive.kind,
        W_enc=Matrix("W_enc"),
        W_dec=Matrix("W_dec"),
        b_enc="b_gate" if naive.kind == "gated" else "b_enc",
        b_dec="b_dec" if naive.subtract else None,
        k=K,
        rescale_by_decoder_norm=naive.rescale,
        norm=naive.norm,
        input_scale=naive.scale,
    )
    return Sae(spec, "test")


def lean_edit(sae: Sae, h: torch.Tensor, change: torch.Tensor, latents: list[int]) -> torch.Tensor:
    coefficients = change[:, latents]
    scale = sae.output_scale(h)
    if scale is not None:
        coefficients = coefficients * scale
    return h + coefficients @ sae.directions(latents)


def naives() -> list[Naive]:
    plain = [Naive(kind, **extra) for kind in KINDS for extra in SETTINGS]
    return plain + [Naive(kind, rescale=True) for kind in ("topk", "abstopk", "jumprelu")]


@pytest.mark.parametrize("naive", naives(), ids=lambda n: f"{n.kind}-{n.subtract}-{n.norm}")
@pytest.mark.parametrize("rows", SIZES)
def test_equals_the_full_pass(naive: Naive, rows: int) -> None:
    sae, h = sae_of(naive), stream(rows)
    everything = naive.encode(h)
    assert (everything != 0).any()
    assert (everything == 0).any()
    torch.testing.assert_close(sae.reader(None)(h), everything, **CLOSE)
    torch.testing.assert_close(sae.reader(LATENTS)(h), everything[:, LATENTS], **CLOSE)
    change = changes(rows, LATENTS)
    torch.testing.assert_close(lean_edit(sae, h, change, LATENTS), naive.edit(h, change), **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_clamp_reads_what_comes_in(kind: str) -> None:
    """v - f_k(h) as the change leaves the latent's part of the reconstruction at v."""
    naive = Naive(kind)
    sae, h = sae_of(naive), stream(17)
    change = torch.zeros(17, N)
    change[:, LATENTS] = 2.0 - sae.reader(LATENTS)(h)
    edited = naive.encode(h)
    edited[:, LATENTS] = 2.0
    want = naive.decode(edited, h) + h - naive.decode(naive.encode(h), h)
    torch.testing.assert_close(lean_edit(sae, h, change, LATENTS), want, **CLOSE)


@given(picks=st.lists(st.integers(0, N - 1), min_size=1, max_size=9))
@settings(max_examples=25, deadline=None)
def test_any_order_and_repeats(picks: list[int]) -> None:
    for kind in ("jumprelu", "topk"):
        naive = Naive(kind)
        sae, h = sae_of(naive), stream(3)
        torch.testing.assert_close(sae.reader(picks)(h), naive.encode(h)[:, picks], **CLOSE)
        torch.testing.assert_close(sae.directions(picks), naive.weights["W_dec"][picks])
        assert sae.reader(picks).indices == tuple(picks)


@pytest.mark.parametrize(
    ("kinds", "joined"),
    [
        (("relu", "relu"), LinearReader),
        (("relu", "jumprelu"), JumpReluReader),
        (("topk", "topk"), SelectReader),
        (("topk", "gated"), JoinedReader),
    ],
)
def test_concat_is_side_by_side(kinds: tuple[str, ...], joined: type) -> None:
    known = {kind: sae_of(Naive(kind)) for kind in kinds}
    subsets = ([3, 3, 0], [39, 1])
    readers = [known[kind].reader(subset) for kind, subset in zip(kinds, subsets, strict=True)]
    both = LatentReader.concat(readers)
    h = stream(17)
    assert type(both) is joined
    assert both.indices == (3, 3, 0, 39, 1)
    torch.testing.assert_close(both(h), torch.cat([reader(h) for reader in readers], 1), **CLOSE)


@pytest.mark.parametrize("norms", [("layer_norm",) * 2, ("layer_norm", "constant_norm_rescale")])
def test_concat_shares_the_norm_where_it_is_the_same(norms: tuple[Norm, Norm]) -> None:
    readers = [sae_of(Naive("relu", norm=norm)).reader([3, 1]) for norm in norms]
    both, h = LatentReader.concat(readers), stream(17)
    assert type(both) is (NormalisedReader if norms[0] == norms[1] else JoinedReader)
    torch.testing.assert_close(both(h), torch.cat([reader(h) for reader in readers], 1), **CLOSE)


def test_topk_of_two_saes_is_not_merged() -> None:
    readers = [sae_of(Naive("topk", seed=seed)).reader([1, 2]) for seed in (0, 1)]
    h = stream(17)
    want = torch.cat([reader(h) for reader in readers], 1)
    torch.testing.assert_close(LatentReader.concat(readers)(h), want, **CLOSE)


def test_topk_fires_k_latents_even_when_they_tie() -> None:
    naive = Naive("topk")
    naive.weights["W_enc"].zero_()
    naive.weights["b_enc"].fill_(1.0)
    acts = sae_of(naive).reader(None)(stream(3))
    assert acts.count_nonzero(dim=1).tolist() == [K, K, K]


@pytest.mark.parametrize("edge", [-0.5, 0.0, 0.25])
def test_jumprelu_at_its_threshold_is_off(edge: float) -> None:
    naive = Naive("jumprelu", subtract=False)
    naive.weights["W_enc"].zero_()
    naive.weights["threshold"].fill_(edge)
    naive.weights["b_enc"].fill_(edge)
    naive.weights["b_enc"][1] += 0.125
    acts = sae_of(naive).reader([0, 1])(stream(3))
    assert acts.tolist() == [[0.0, max(edge + 0.125, 0.0)]] * 3


def test_plain_readers_show_their_bank() -> None:
    naive = Naive("jumprelu")
    reader = sae_of(naive).reader([5, 2])
    assert isinstance(reader, JumpReluReader)
    assert reader.W.is_contiguous()
    torch.testing.assert_close(reader.W, naive.weights["W_enc"][:, [5, 2]])
    bias = naive.weights["b_enc"] - naive.weights["b_dec"] @ naive.weights["W_enc"]
    torch.testing.assert_close(reader.b, bias[[5, 2]])
    torch.testing.assert_close(reader.threshold, naive.weights["threshold"][[5, 2]].clamp(min=0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", [None, "layer_norm"])
def test_readers_take_any_dtype_and_move(kind: str, norm: str | None) -> None:
    reader = sae_of(Naive(kind, norm=norm)).reader([4, 9])
    h = stream(3).bfloat16()
    out = reader(h)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, reader(h.float()))
    torch.testing.assert_close(reader.to("cpu", torch.float64)(h.double()).float(), out, **CLOSE)


@pytest.mark.parametrize("norm", ["constant_norm_rescale", "layer_norm"])
def test_a_row_of_zeros_stays_finite(norm: str) -> None:
    sae = sae_of(Naive("relu", norm=norm))
    h = torch.zeros(2, D)
    assert sae.reader([0, 1])(h).isfinite().all()
    scale = sae.output_scale(h)
    assert scale is not None
    assert scale.tolist() == [[0.0], [0.0]]


def test_decoder_norms_are_those_of_the_directions() -> None:
    for naive in (Naive("relu"), Naive("relu", scale=0.37), Naive("topk", rescale=True)):
        sae = sae_of(naive)
        torch.testing.assert_close(sae.decoder_norms(), sae.directions(range(N)).norm(dim=1))


def test_wrong_index_and_width_name_the_offender() -> None:
    sae = sae_of(Naive("relu"))
    for call in (sae.directions, sae.reader):
        with pytest.raises(UserError, match=r"SAE 'test' has no latent 40: it has 40, .* 0 to 39"):
            call([3, 40])
        with pytest.raises(UserError, match="no latent -1"):
            call([-1])
    sae.check_width(D)
    with pytest.raises(UserError, match="width 12, the model 64: SAE width not matching"):
        sae.check_width(64)


def test_no_latents_is_no_rows() -> None:
    sae = sae_of(Naive("jumprelu"))
    assert sae.directions([]).shape == (0, D)
    assert sae.reader([])(stream(3)).shape == (3, 0)


def folder(path: Path, naive: Naive, **config: object) -> Path:
    path.mkdir(exist_ok=True)
    base = {"architecture": "standard", "d_in": D, "d_sae": N, "apply_b_dec_to_input": True}
    (path / "cfg.json").write_text(json.dumps(base | config))
    save_file(naive.stored(), str(path / "sae_weights.safetensors"))
    return path


def test_only_a_stream_sae_is_read(tmp_path: Path) -> None:
    naive = Naive("relu")
    sae = load_sae(folder(tmp_path / "mlp", naive, hook_name="blocks.5.hook_mlp_out"))
    torch.testing.assert_close(sae.directions([3]), naive.weights["W_dec"][[3]])
    with pytest.raises(UserError, match=r"trained on blocks.5.hook_mlp_out, not on the residual"):
        sae.reader([3])
