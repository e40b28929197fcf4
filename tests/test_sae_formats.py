"""Every published format, read back against the tensors it was written from."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from saes import SIZES, D, K, N, Naive, changes, stream
from safetensors.torch import save_file
from torch import Tensor

from steerback.errors import UserError
from steerback.sae import Sae, load_sae
from steerback.sae.npz import NpzFile

LATENTS = [7, 0, 39, 12, 7]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
Weights = dict[str, Tensor]


def write_saelens(path: Path, w: Weights, **config: Any) -> Path:
    base = {"architecture": "standard", "d_in": w["W_dec"].shape[1], "d_sae": len(w["W_dec"])}
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    return write_folder(path, "sae_weights.safetensors", {k: w[k] for k in names}, base | config)


def write_gemma(path: Path, w: Weights, save: Any = np.savez, lower: bool = False) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    names = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
    spelt = {name.replace("W", "w") if lower else name: w[name].numpy() for name in names}
    save(path / "params.npz", **spelt)
    return path / "params.npz"


def write_goodfire(path: Path, w: Weights, zipped: bool = True) -> Path:
    state = {
        "encoder_linear.weight": w["W_enc"].T.contiguous(),
        "encoder_linear.bias": w["b_enc"],
        "decoder_linear.weight": w["W_dec"].T.contiguous(),
        "decoder_linear.bias": w["b_dec"],
    }
    path.mkdir(parents=True, exist_ok=True)
    file = path / "Tiny-3B-Instruct-SAE-l19.pth"
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    return file


def write_sparsify(path: Path, w: Weights, **config: Any) -> Path:
    base = {"d_in": w["W_dec"].shape[1], "num_latents": len(w["W_dec"]), "k": K}
    state = {
        "encoder.weight": w["W_enc"].T.contiguous(),
        "encoder.bias": w["b_enc"],
        "W_dec": w["W_dec"],
        "b_dec": w["b_dec"],
    }
    return write_folder(path, "sae.safetensors", state, base | config)


def write_llama_scope(path: Path, w: Weights, **config: Any) -> Path:
    base = {
        "d_model": w["W_dec"].shape[1],
        "d_sae": len(w["W_dec"]),
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.2,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": 9.25, "out": 9.25},
        "hook_point_in": "blocks.15.hook_resid_post",
        "hook_point_out": "blocks.15.hook_resid_post",
    }
    state = {
        "encoder.weight": w["W_enc"].T.contiguous(),
        "encoder.bias": w["b_enc"],
        "decoder.weight": w["W_dec"].T.contiguous(),
        "decoder.bias": w["b_dec"],
    }
    path.mkdir(parents=True, exist_ok=True)
    (path / "hyperparams.json").write_text(json.dumps(base | config))
    (path / "checkpoints").mkdir(exist_ok=True)
    save_file(state, str(path / "checkpoints" / "final.safetensors"))
    return path


def write_folder(path: Path, file: str, state: Weights, config: dict[str, Any]) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "cfg.json").write_text(json.dumps(config))
    save_file(state, str(path / file))
    return path


def agrees(sae: Sae, naive: Naive) -> None:
    assert (sae.n, sae.d_model) == (N, D)
    for rows in SIZES:
        h = stream(rows)
        acts = naive.encode(h)
        torch.testing.assert_close(sae.reader(None)(h), acts, **CLOSE)
        torch.testing.assert_close(sae.reader(LATENTS)(h), acts[:, LATENTS], **CLOSE)
        change = changes(rows, LATENTS[:4])
        lean = h + change[:, LATENTS[:4]] @ sae.directions(LATENTS[:4])
        torch.testing.assert_close(lean, naive.edit(h, change), **CLOSE)
    norms = sae.directions(range(N)).norm(dim=1)
    torch.testing.assert_close(sae.decoder_norms(), norms, **CLOSE)


def test_saelens(tmp_path: Path) -> None:
    naive = Naive("relu")
    folder = write_saelens(tmp_path / "a", naive.weights, hook_name="blocks.3.hook_resid_post")
    for path in (folder, folder / "sae_weights.safetensors", str(folder)):
        sae = load_sae(path)
        assert (sae.name, sae.layer) == ("a", 3)
    agrees(sae, naive)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("lower", [False, True])
def test_gemma_scope(tmp_path: Path, save: Callable[..., None], lower: bool) -> None:
    naive = Naive("jumprelu", subtract=False)
    file = write_gemma(tmp_path / "layer_16" / "average_l0_78", naive.weights, save, lower)
    for path in (file, file.parent):
        sae = load_sae(path)
        assert (sae.name, sae.layer) == ("average_l0_78", 16)
    agrees(sae, naive)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_arrays_in_column_order(tmp_path: Path, save: Callable[..., None]) -> None:
    """What numpy writes of a transposed array."""
    naive = Naive("jumprelu", subtract=False)
    naive.weights["W_enc"] = naive.weights["W_enc"].T.contiguous().T
    agrees(load_sae(write_gemma(tmp_path, naive.weights, save)), naive)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8"])
def test_npz_rows_in_any_order(tmp_path: Path, save: Callable[..., None], dtype: str) -> None:
    array = np.arange(65 * 3, dtype=dtype).reshape(65, 3)
    save(tmp_path / "a.npz", array=array, flat=array[:, 0])
    with NpzFile(tmp_path / "a.npz").open() as parts:
        for start, stop in ((17, 20), (0, 1), (64, 65), (3, 3), (0, 65)):
            found = parts["array"][start:stop].to(torch.float64).numpy()
            np.testing.assert_array_equal(found, array[start:stop])
        assert parts["flat"][...].shape == (65,)


@pytest.mark.parametrize("zipped", [True, False])
def test_goodfire(tmp_path: Path, zipped: bool) -> None:
    naive = Naive("relu", subtract=False)
    file = write_goodfire(tmp_path, naive.weights, zipped)
    for path in (file, tmp_path):
        assert load_sae(path).layer == 19
    agrees(load_sae(file), naive)


@pytest.mark.parametrize("normalize_decoder", [True, False])
@pytest.mark.parametrize(
    ("kind", "config"),
    [("topk", {}), ("groupmax", {"activation": "groupmax"}), ("abstopk", {"signed": True})],
)
def test_sparsify_subtracts_b_dec_whatever_the_decoder_setting(
    tmp_path: Path, kind: str, config: dict[str, Any], normalize_decoder: bool
) -> None:
    naive = Naive(kind)
    config = {**config, "normalize_decoder": normalize_decoder}
    sae = load_sae(write_sparsify(tmp_path / "layers.10", naive.weights, **config))
    assert sae.layer == 10
    agrees(sae, naive)


def test_sparsify_width_by_expansion_factor(tmp_path: Path) -> None:
    w = {key: value[..., :36] for key, value in Naive("relu").weights.items()}
    w["W_dec"], w["b_dec"] = Naive("relu").weights["W_dec"][:36], Naive("relu").weights["b_dec"]
    folder = write_sparsify(tmp_path / "layers_2", w, num_latents=0, expansion_factor=3)
    assert (load_sae(folder).n, load_sae(folder).layer) == (36, 2)


def test_llama_scope(tmp_path: Path) -> None:
    scale = D**0.5 / 9.25
    naive = Naive("jumprelu", subtract=False, scale=scale)
    naive.weights["threshold"].fill_(0.2 * scale)
    sae = load_sae(write_llama_scope(tmp_path, naive.weights))
    assert sae.layer == 15
    agrees(sae, naive)


HOOKS = {
    "blocks.8.hook_resid_post": 8,
    "blocks.8.hook_resid_pre": 7,
    "blocks.0.hook_resid_pre": None,
    "model.layers.12": 12,
    "transformer.h.3": 3,
    "hook_embed": None,
    "width_16": None,
}


@pytest.mark.parametrize(("hook", "layer"), HOOKS.items())
def test_layer_is_the_one_whose_output_it_is(tmp_path: Path, hook: str, layer: int | None) -> None:
    weights = Naive("relu").weights
    assert load_sae(write_saelens(tmp_path, weights, metadata={"hook_name": hook})).layer == layer


def test_hash_follows_weights_and_settings(tmp_path: Path) -> None:
    weights = Naive("relu").weights
    folders = [write_saelens(tmp_path / str(i), weights) for i in range(3)]
    write_saelens(folders[1], weights, apply_b_dec_to_input=False)
    write_saelens(folders[2], Naive("relu", seed=5).weights)
    copy = write_saelens(tmp_path / "copy", weights)
    hashes = [load_sae(folder).content_hash() for folder in folders]
    assert len(set(hashes)) == 3
    assert load_sae(copy).content_hash() == hashes[0]


# ---- what goes wrong, in one line


def one_line(path: Path | str, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        load_sae(path)
    assert "\n" not in str(caught.value)


def test_nothing_there_and_nothing_known(tmp_path: Path) -> None:
    one_line(tmp_path / "none", "no such file or folder")
    (tmp_path / "README.md").write_text("hello")
    one_line(tmp_path, r"no SAE format recognised: found README.md; known formats: SAELens \(cfg")
    one_line(tmp_path / "README.md", "found a file of 5 bytes; .*Goodfire")


@pytest.mark.parametrize("write", [write_saelens, write_sparsify, write_llama_scope])
def test_cut_safetensors(tmp_path: Path, write: Callable[..., Path]) -> None:
    folder = write(tmp_path / "layers.1", Naive("relu").weights)
    file = next(folder.rglob("*.safetensors"))
    for keep in (1000, 4, 0):
        file.write_bytes(file.read_bytes()[:keep])
        one_line(folder, "not a whole safetensors file .*; download it again")


def test_cut_npz(tmp_path: Path) -> None:
    file = write_gemma(tmp_path, Naive("relu").weights)
    file.write_bytes(file.read_bytes()[:2000])
    one_line(file, "not a whole npz file")


def test_npz_damaged_inside(tmp_path: Path) -> None:
    rows = torch.randn(5000, D)
    weights = Naive("relu").weights | {"W_enc": rows.T, "W_dec": rows}
    weights |= {name: torch.zeros(5000) for name in ("b_enc", "threshold")}
    file = write_gemma(tmp_path, weights, np.savez_compressed)
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        at = archive.getinfo("W_dec.npy").header_offset
    content[at + 100_000 : at + 100_020] = bytes(20)
    file.write_bytes(content)
    sae = load_sae(file)
    with pytest.raises(UserError, match=r"'W_dec.npy' is damaged .*; download it again"):
        sae.directions([4999])


def test_npz_of_objects(tmp_path: Path) -> None:
    np.savez(tmp_path / "params.npz", W_enc=np.array([{"a": 1}, None], dtype=object))
    one_line(tmp_path, "'W_enc.npy' holds Python objects, which only pickle could read: refused")


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("harm",))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_refused_and_not_run(
    tmp_path: Path, zipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "sae.pt"
    torch.save({"w": Harmful()}, file, _use_new_zipfile_serialization=zipped)
    one_line(
        file, r"sae.pt: refused: it is a pickle that calls \w+.mkdir, which could run any code"
    )
    assert not (tmp_path / "harm").exists()


def test_files_that_are_not_state_dicts(tmp_path: Path) -> None:
    file = tmp_path / "sae.pt"
    torch.save([torch.ones(2)], file)
    one_line(file, "holds a list, not a dict of tensors")
    torch.save({"step": 3}, file)
    one_line(file, "entries that are not tensors: step")
    torch.save({"weight": torch.ones(2)}, file)
    one_line(file, r"no tensor 'encoder_linear.weight'; the file holds weight")
    file.write_bytes(b"not torch at all")
    one_line(file, "not a PyTorch file of plain tensors|not a whole PyTorch file")
    write_goodfire(tmp_path / "cut", Naive("relu").weights)
    whole = tmp_path / "cut" / "Tiny-3B-Instruct-SAE-l19.pth"
    whole.write_bytes(whole.read_bytes()[:3000])
    one_line(whole, "download it again")


SETTINGS = [
    ({"d_sae": 41}, r"'W_enc' has shape \[12, 40\], but 41 latents of width 12 make it \[12, 41\]"),
    ({"d_in": None}, "'d_in' is None in the settings; expected a whole number"),
    ({"architecture": "transcoder"}, "architecture 'transcoder' is not read; known: abstopk"),
    ({"activation_fn": "tanh-relu"}, "activation 'tanh-relu' is not read"),
    ({"normalize_activations": "covariance_whitening"}, "'covariance_whitening' is not read"),
    ({"reshape_activations": "hook_z"}, "attention heads, not read"),
    ({"hook_name": "blocks.1.attn.hook_z"}, "attention heads, not read"),
    ({"architecture": "topk", "k": 41}, "k is 41; it must be between 1 and 40"),
    ({"architecture": "topk"}, "'k' is None in the settings"),
    ({"architecture": "jumprelu"}, "no tensor 'threshold'; the file holds W_dec, W_enc, b_dec"),
]


@pytest.mark.parametrize(("config", "match"), SETTINGS, ids=str)
def test_saelens_settings(tmp_path: Path, config: dict[str, Any], match: str) -> None:
    one_line(write_saelens(tmp_path, Naive("relu").weights, **config), match)


def test_saelens_files(tmp_path: Path) -> None:
    weights = Naive("relu").weights
    folder = write_saelens(tmp_path, weights)
    state = {key: weights[key] for key in ("W_enc", "b_enc", "W_dec", "b_dec")}
    scaled = state | {"scaling_factor": torch.full((N,), 2.0)}
    save_file(scaled, str(folder / "sae_weights.safetensors"))
    one_line(folder, "'scaling_factor' rescales the decoder's output")
    (folder / "cfg.json").write_text("{")
    one_line(folder, "cfg.json: not readable as JSON")
    (folder / "cfg.json").write_text("[]")
    one_line(folder, "expected a JSON object, found list")


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"transcode": True}, "'transcode' is set: a transcoder reads one site"),
        ({"gram_lookup": True}, "'gram_lookup' is set"),
        ({"activation": "max"}, "activation 'max' is not read; known: topk, groupmax"),
        ({"activation": "groupmax", "k": 7}, "40 latents do not divide into k = 7 groups"),
    ],
)
def test_sparsify_settings(tmp_path: Path, config: dict[str, Any], match: str) -> None:
    one_line(write_sparsify(tmp_path / "layers.1", Naive("relu").weights, **config), match)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"act_fn": "topk"}, "act_fn 'topk' is not read"),
        ({"use_glu_encoder": True}, "gated linear units"),
        ({"hook_point_out": "blocks.15.hook_mlp_out"}, "a transcoder .* not an SAE"),
        ({"norm_activation": "token-wise"}, "norm_activation 'token-wise' is not read"),
        ({"dataset_average_activation_norm": {}}, "activation_norm.in' is None"),
        ({"jump_relu_threshold": None}, "'jump_relu_threshold' is None"),
    ],
)
def test_llama_scope_settings(tmp_path: Path, config: dict[str, Any], match: str) -> None:
    one_line(write_llama_scope(tmp_path, Naive("relu").weights, **config), match)


def test_gemma_scope_kinds(tmp_path: Path) -> None:
    weights = Naive("relu").weights
    one_line(write_gemma(tmp_path / "gemma-scope-2b-pt-transcoders", weights), "a transcoder")
    one_line(write_gemma(tmp_path / "embedding", weights), "an SAE of the embedding")
    np.savez(tmp_path / "params.npz", W_enc=np.ones((4, 4), dtype=np.int64))
    one_line(tmp_path / "params.npz", "dtype int64; expected floating point")


# ---- only what is needed is held

BIG_N, BIG_D, MB = 65_536, 256, 1 << 20


def big_weights() -> Weights:
    number = torch.arange(BIG_N, dtype=torch.float32)
    return {
        "W_enc": number.expand(BIG_D, BIG_N).contiguous(),
        "W_dec": number[:, None].expand(BIG_N, BIG_D).contiguous(),
        "b_enc": number,
        "b_dec": torch.zeros(BIG_D),
        "threshold": torch.zeros(BIG_N),
    }


def deflate(file: Path, **arrays: Any) -> None:
    """What np.savez_compressed writes, with less effort spent on making it small."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array)


def status(field: str) -> int:
    """Bytes, from the kernel's account of this process."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{field}:")[2].split()[0]) * 1024


def peak_of(action: Callable[[], Tensor]) -> tuple[Tensor, int, int]:
    """(result, how much memory rose at its highest, how much of it stays)."""
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    result = action()
    return result, status("VmHWM") - before, status("VmRSS") - before


FORMATS: dict[str, tuple[Callable[[Path, Weights], Path], int]] = {
    # the decoder, 64 MB, is never held; the margin is two blocks of 16 MB and the allocator's slack
    "saelens": (write_saelens, 50),
    "gemma stored": (write_gemma, 50),
    "gemma deflated": (lambda path, w: write_gemma(path, w, deflate), 50),
    "sparsify": (lambda path, w: write_sparsify(path / "layers.1", w), 50),
    # mapped by torch, and stored as the transpose: its pages come into memory in passing and leave
    # again; the encoder's are not touched
    "goodfire": (write_goodfire, 64 + 50),
    "llama scope": (write_llama_scope, 50),
}


measured = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's account of memory"
)


@measured
@pytest.mark.parametrize("name", FORMATS)
def test_500_of_65536_latents_cost_500_rows(tmp_path: Path, name: str) -> None:
    write, limit = FORMATS[name]
    path = write(tmp_path, big_weights())
    size = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    assert "deflated" in name or size > 128 * MB
    picks = torch.randperm(BIG_N, generator=torch.Generator().manual_seed(0))[:500].tolist()
    rows, peak, stays = peak_of(lambda: load_sae(path).directions(picks))
    scale = rows[0, 0] / picks[0]
    expected = torch.tensor(picks)[:, None].expand(500, BIG_D) * scale
    torch.testing.assert_close(rows, expected)
    assert peak < limit * MB
    assert stays < 40 * MB


@measured
@pytest.mark.parametrize("name", ["saelens", "gemma stored"])
def test_a_few_encoder_columns_do_not_hold_the_encoder(tmp_path: Path, name: str) -> None:
    write, _ = FORMATS[name]
    path = write(tmp_path, big_weights())
    reader, peak, _ = peak_of(lambda: load_sae(path).reader([5, 65_535]))
    assert reader.W[:, 1].unique().tolist() == [65_535]
    assert peak < 50 * MB


# ---- the page about it


def test_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[1] / "docs" / "sae-formats.md"
    examples = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 2
    monkeypatch.chdir(tmp_path)
    naive = Naive("jumprelu")
    write_folder(
        tmp_path / "sae_folder",
        "sae_weights.safetensors",
        naive.stored(),
        {"architecture": "jumprelu", "d_in": D, "d_sae": N},
    )
    for example in examples:
        exec(compile(example, str(page), "exec"), {})
