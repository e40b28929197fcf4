"""Against sae-lens: it saves random SAEs, we read them; encodings and edits are equal."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from saes import SIZES, D, K, N, changes, stream

from steerback.sae import load_sae

sae_lens = pytest.importorskip("sae_lens")
LATENTS = [7, 0, 39, 12]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
CONFIGS = {
    "standard": sae_lens.StandardSAEConfig,
    "jumprelu": sae_lens.JumpReLUSAEConfig,
    "gated": sae_lens.GatedSAEConfig,
    "topk": sae_lens.TopKSAEConfig,
    "abstopk": sae_lens.saes.abstopk_sae.AbsTopKSAEConfig,
}
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"apply_b_dec_to_input": False},
    {"normalize_activations": "constant_norm_rescale"},
    {"normalize_activations": "layer_norm", "apply_b_dec_to_input": False},
    {"normalize_activations": "expected_average_only_in"},
)
CASES = [(name, extra) for name in CONFIGS for extra in SETTINGS] + [
    (name, {"rescale_acts_by_decoder_norm": True}) for name in ("topk", "abstopk")
]


def randomised(sae: Any, seed: int = 0) -> Any:
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(sae.named_parameters()):
            weight.copy_(torch.randn(weight.shape, generator=gen) / (1 if "W_dec" in name else 3))
    return sae


def made(name: str, extra: dict[str, Any]) -> Any:
    config = CONFIGS[name](d_in=D, d_sae=N, **({"k": K} if "topk" in name else {}), **extra)
    return randomised(sae_lens.SAE.from_dict(config.to_dict()))


def agrees(theirs: Any, folder: Path, rows: int) -> None:
    ours, h = load_sae(folder), stream(rows)
    acts = theirs.encode(h)
    torch.testing.assert_close(ours.reader(None)(h), acts, **CLOSE)
    torch.testing.assert_close(ours.reader(LATENTS)(h), acts[:, LATENTS], **CLOSE)
    change = changes(rows, LATENTS)
    edited = theirs.decode(acts + change)
    theirs.encode(h)  # decode consumes what encode remembered of the input's norm
    want = edited + (h - theirs.decode(acts))
    scale = ours.output_scale(h)
    lean = change[:, LATENTS] * (1 if scale is None else scale)
    torch.testing.assert_close(h + lean @ ours.directions(LATENTS), want, **CLOSE)


@pytest.mark.parametrize(("name", "extra"), CASES, ids=str)
@pytest.mark.parametrize("rows", SIZES)
@torch.no_grad()
def test_what_sae_lens_saves(tmp_path: Path, name: str, extra: dict[str, Any], rows: int) -> None:
    theirs = made(name, extra)
    theirs.save_model(tmp_path)
    agrees(theirs, tmp_path, rows)


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("kind", ["BatchTopK", "MatryoshkaBatchTopK"])
@torch.no_grad()
def test_batchtopk_as_sae_lens_finishes_it_and_as_a_checkpoint(
    tmp_path: Path, kind: str, rescale: bool
) -> None:
    extra = {"matryoshka_widths": [10, N]} if kind.startswith("M") else {}
    config = getattr(sae_lens, f"{kind}TrainingSAEConfig")(
        d_in=D, d_sae=N, k=K, rescale_acts_by_decoder_norm=rescale, **extra
    )
    trained = randomised(getattr(sae_lens, f"{kind}TrainingSAE")(config))
    trained.topk_threshold.fill_(0.8)
    trained.save_model(tmp_path / "checkpoint")
    trained.save_inference_model(tmp_path / "finished")
    finished = sae_lens.SAE.load_from_disk(tmp_path / "finished")
    h = stream(65)
    for rows in SIZES:
        agrees(finished, tmp_path / "finished", rows)
    want = load_sae(tmp_path / "finished").reader(None)(h)
    assert 0 < want.count_nonzero() < want.numel()
    checkpoint = load_sae(tmp_path / "checkpoint")
    torch.testing.assert_close(checkpoint.reader(None)(h), want, **CLOSE)
    torch.testing.assert_close(checkpoint.directions(LATENTS), finished.W_dec[LATENTS], **CLOSE)


@torch.no_grad()
def test_a_configuration_from_before_version_6(tmp_path: Path) -> None:
    """sae-lens 3 wrote topk as an activation of the standard architecture."""
    import json

    theirs = made("topk", {})
    theirs.save_model(tmp_path)
    old = {
        "d_in": D,
        "d_sae": N,
        "dtype": "float32",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": K},
        "hook_point": "blocks.8.hook_resid_pre",
        "normalize_activations": False,
    }
    (tmp_path / "cfg.json").write_text(json.dumps(old))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        agrees(sae_lens.SAE.load_from_disk(tmp_path), tmp_path, 17)
    assert load_sae(tmp_path).layer == 7


@torch.no_grad()
def test_bfloat16_weights_are_computed_in_float32(tmp_path: Path) -> None:
    theirs = made("jumprelu", {}).to(dtype=torch.bfloat16)
    theirs.save_model(tmp_path)
    agrees(theirs.to(dtype=torch.float32), tmp_path, 17)


def test_hook_name_in_the_metadata(tmp_path: Path) -> None:
    metadata = sae_lens.saes.sae.SAEMetadata(hook_name="blocks.16.hook_resid_post")
    made("standard", {"metadata": metadata}).save_model(tmp_path)
    assert load_sae(tmp_path).layer == 16
