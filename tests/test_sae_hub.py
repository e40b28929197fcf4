"""Releases by name: the right files are asked for, and sae-lens's own converters agree."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from saes import D, N, Naive, stream
from test_sae_formats import (
    write_gemma,
    write_goodfire,
    write_llama_scope,
    write_saelens,
)

from steerback.errors import UserError
from steerback.sae import load_sae

sae_lens = pytest.importorskip("sae_lens")
from sae_lens.loading import pretrained_sae_loaders as loaders  # noqa: E402
from sae_lens.loading import pretrained_saes_directory as directory  # noqa: E402

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[str]]:
    """A folder that stands for the hub, and the files that were asked of it."""
    asked: list[str] = []

    def download(repo_id: str, filename: str, subfolder: str | None = None, **_: Any) -> str:
        name = f"{repo_id}/{subfolder}/{filename}" if subfolder else f"{repo_id}/{filename}"
        asked.append(name)
        if not (tmp_path / name).is_file():
            raise FileNotFoundError(f"no {name}\non the hub")
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(loaders, "hf_hub_download", download)
    return tmp_path, asked


def enter(monkeypatch: pytest.MonkeyPatch, conversion: str | None, repo: str, at: str) -> None:
    """A directory with one release, 'tiny', of one SAE, 'layer_3/it'."""
    entry = directory.PretrainedSAELookup(
        release="tiny",
        repo_id=repo,
        model="tiny",
        conversion_func=conversion,
        saes_map={"layer_3/it": at},
        expected_var_explained={},
        expected_l0={},
        neuronpedia_id={},
        norm_scaling_factor={"layer_3/it": 0.5},
        config_overrides=None,
    )
    monkeypatch.setattr(directory, "get_pretrained_saes_directory", lambda: {"tiny": entry})


GEMMA, LLAMA = "google/gemma-scope-2b-pt-res", "fnlp/Llama3_1-8B-Base-LXR-8x"
GOODFIRE = "Goodfire/Tiny-3B-Instruct-SAE-l19"
RELEASES: dict[str, tuple[str | None, str, str, Callable[..., Path], list[str]]] = {
    "sae_lens": (None, "org/saes", "l3", write_saelens, ["cfg.json", "sae_weights.safetensors"]),
    "gemma_2": ("gemma_2", GEMMA, "layer_3/width_16k/l0_9", write_gemma, ["params.npz"]),
    "goodfire": ("goodfire", GOODFIRE, "Tiny-3B-Instruct-SAE-l19.pth", write_goodfire, []),
    "llama_scope": (
        "llama_scope",
        LLAMA,
        "L15R-8x",
        write_llama_scope,
        ["hyperparams.json", "checkpoints/final.safetensors"],
    ),
}


@pytest.mark.parametrize("release", RELEASES)
def test_a_release_is_read_from_its_files(
    hub: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    root, asked = hub
    conversion, repo, at, write, files = RELEASES[release]
    enter(monkeypatch, conversion, repo, at)
    local = write(root / repo if release == "goodfire" else root / repo / at, Naive("relu").weights)
    sae = load_sae("saelens:tiny/layer_3/it")
    assert sae.name == "tiny/layer_3/it"
    assert asked == ([f"{repo}/{at}/{file}" for file in files] or [f"{repo}/{at}"])
    h = stream(17)
    torch.testing.assert_close(sae.reader(None)(h), load_sae(local).reader(None)(h))
    assert sae.content_hash() == load_sae(local).content_hash()


@torch.no_grad()
@pytest.mark.parametrize("release", ["gemma_2", "goodfire", "llama_scope"])
def test_equal_to_sae_lens_own_converter(
    hub: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    root, _ = hub
    conversion, repo, at, write, _ = RELEASES[release]
    weights = Naive("relu").weights
    weights["threshold"] = weights["threshold"].abs()
    local = write(root / repo if release == "goodfire" else root / repo / at, weights)
    overrides = {"d_in": D, "d_sae": N, "dtype": "float32"}
    if release == "goodfire":
        shapes = {"architecture": "standard", "apply_b_dec_to_input": False}
        monkeypatch.setattr(loaders, "get_goodfire_config_from_hf", lambda *_: shapes | overrides)
    loader = loaders.NAMED_PRETRAINED_SAE_LOADERS[conversion]
    config, state, _ = loader(repo, at, device="cpu", force_download=False, cfg_overrides=overrides)
    theirs = sae_lens.SAE.from_dict(loaders.handle_config_defaulting(config))
    theirs.load_state_dict(state)
    if release == "llama_scope":
        theirs.fold_activation_norm_scaling_factor(D**0.5 / 9.25)
    ours = load_sae(local)
    for rows in (1, 3, 17, 65):
        h = stream(rows)
        acts = theirs.encode(h)
        assert acts.any()
        torch.testing.assert_close(ours.reader(None)(h), acts, **CLOSE)
        edited = theirs.decode(acts + 2) - theirs.decode(acts)
        lean = torch.full((rows, N), 2.0) @ ours.directions(range(N))
        torch.testing.assert_close(lean, edited, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["relu", "topk"])
def test_the_factor_in_the_directory_is_folded_as_sae_lens_folds_it(
    hub: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    root, _ = hub
    enter(monkeypatch, None, "org/saes", "l3")
    extra = {"architecture": "topk", "k": 5, "rescale_acts_by_decoder_norm": True}
    write_saelens(
        root / "org/saes/l3",
        Naive("relu").weights,
        normalize_activations="expected_average_only_in",
        metadata={"sae_lens_version": "6.0.0"},
        dtype="float32",
        **(extra if kind == "topk" else {}),
    )
    theirs = sae_lens.SAE.load_from_disk(root / "org/saes/l3")
    theirs.fold_activation_norm_scaling_factor(0.5)
    ours, h = load_sae("saelens:tiny/layer_3/it"), stream(17)
    with torch.no_grad():
        acts = theirs.encode(h)
        torch.testing.assert_close(ours.reader(None)(h), acts, **CLOSE)
        torch.testing.assert_close(ours.reader([3, 1])(h), acts[:, [3, 1]], **CLOSE)
        one = theirs.decode(torch.eye(N)) - theirs.decode(torch.zeros(1, N))
    torch.testing.assert_close(ours.directions(range(N)), one, **CLOSE)


@torch.no_grad()
def test_other_conversions_go_through_sae_lens(
    hub: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(monkeypatch, "gemma_3", "org/saes", "l3")
    naive = Naive("jumprelu")
    config = sae_lens.JumpReLUSAEConfig(d_in=D, d_sae=N)
    theirs = sae_lens.JumpReLUSAE(config)
    theirs.load_state_dict(naive.stored())
    monkeypatch.setattr(sae_lens.SAE, "from_pretrained", lambda *_, **__: theirs)
    ours = load_sae("saelens:tiny/layer_3/it", name="mine")
    assert ours.name == "mine"
    assert len(ours.content_hash()) == 64
    torch.testing.assert_close(ours.reader(None)(stream(17)), naive.encode(stream(17)), **CLOSE)


MISTAKES = {
    "saelens:tiny": "expected saelens:RELEASE/SAE_ID",
    "saelens:tinny/layer_3/it": "knows no release 'tinny'; did you mean 'tiny'",
    "saelens:tiny/layer_3/if": "release 'tiny' has no SAE 'layer_3/if'; did you mean 'layer_3/it'",
    "saelens:tiny/layer_3/it": "could not be downloaded or read: no org/saes/l3/cfg.json$",
}


@pytest.mark.parametrize(("spec", "match"), MISTAKES.items())
def test_mistakes(
    hub: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, spec: str, match: str
) -> None:
    enter(monkeypatch, None, "org/saes", "l3")
    with pytest.raises(UserError, match=match) as caught:
        load_sae(spec)
    assert "\n" not in str(caught.value)


def test_without_sae_lens(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("sae_lens"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match=r"not installed; pip install 'steerback\[saelens\]'"):
        load_sae("saelens:tiny/layer_3/it")


def test_the_releases_of_the_paper_are_in_the_directory() -> None:
    known = directory.get_pretrained_saes_directory()
    for release, sae_id in (
        ("goodfire-llama-3.3-70b-instruct", "layer_50"),
        ("goodfire-llama-3.1-8b-instruct", "layer_19"),
        ("gemma-scope-2b-pt-res-canonical", "layer_16/width_16k/canonical"),
        ("gemma-scope-9b-pt-res-canonical", "layer_26/width_16k/canonical"),
        ("gemma-scope-27b-pt-res-canonical", "layer_22/width_131k/canonical"),
    ):
        assert sae_id in known[release].saes_map
