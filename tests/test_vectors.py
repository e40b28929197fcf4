"""Plain vector sets: a file round trip, and one line for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from steerback.errors import UserError
from steerback.vectors import VectorSet

PROVENANCE = {"method": "difference of means", "model": "tiny"}


@pytest.mark.parametrize("n", [1, 3, 17])
def test_round_trip(tmp_path: Path, n: int) -> None:
    vectors = torch.randn(n, 12, dtype=torch.float64)
    made = VectorSet("made", vectors, [f"v{i}" for i in range(n)], PROVENANCE)
    made.save(tmp_path / "set.safetensors")
    read = VectorSet.load(tmp_path / "set.safetensors")
    assert (read.name, read.n, read.d_model) == ("set", n, 12)
    assert read.labels == made.labels
    assert read.provenance == PROVENANCE
    picks = [n - 1, 0, n - 1]
    for source in (made, read):
        torch.testing.assert_close(source.directions(picks), vectors[picks].float())
        assert source.directions([]).shape == (0, 12)
        assert source.output_scale(torch.randn(3, 12)) is None
    assert len(read.content_hash()) == len(made.content_hash()) == 64


def test_hash_follows_the_vectors(tmp_path: Path) -> None:
    vectors = torch.randn(3, 12)
    changed = vectors.clone()
    changed[2, 11] += 1
    assert VectorSet("a", vectors).content_hash() == VectorSet("b", vectors).content_hash()
    assert VectorSet("a", vectors).content_hash() != VectorSet("a", changed).content_hash()


def test_a_file_of_vectors_alone_will_do(tmp_path: Path) -> None:
    save_file({"vectors": torch.ones(2, 4, dtype=torch.bfloat16)}, str(tmp_path / "v.safetensors"))
    read = VectorSet.load(tmp_path / "v.safetensors", "plain")
    assert (read.name, read.labels, read.provenance) == ("plain", (), {})
    assert read.directions([1]).tolist() == [[1.0] * 4]


def test_no_encoder() -> None:
    with pytest.raises(UserError, match=r"'v' is a vector set, .*clamp and watch need an SAE"):
        VectorSet("v", torch.ones(2, 4)).reader([0])


def test_index_and_width() -> None:
    source = VectorSet("v", torch.ones(2, 4))
    with pytest.raises(UserError, match=r"vector set 'v' has no vector 2: it has 2, .* 0 to 1"):
        source.directions([2])
    with pytest.raises(UserError, match="width 4, the model 8"):
        source.check_width(8)


@pytest.mark.parametrize(
    ("tensors", "metadata", "match"),
    [
        ({"other": torch.ones(2)}, {}, "no tensor 'vectors'; the file holds other"),
        ({"vectors": torch.ones(2)}, {}, r"shape \[2\]; expected \[n, d_model\]"),
        ({"vectors": torch.ones(2, 4)}, {"labels": '["a"]'}, "1 labels for 2 vectors"),
        ({"vectors": torch.ones(2, 4)}, {"labels": "a,b"}, "metadata 'labels' is not JSON"),
        ({"vectors": torch.ones(2, 4)}, {"provenance": "[]"}, "'provenance' is not a JSON dict"),
    ],
)
def test_mistakes(
    tmp_path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str], match: str
) -> None:
    path = tmp_path / "v.safetensors"
    save_file(tensors, str(path), metadata)
    with pytest.raises(UserError, match=match) as caught:
        VectorSet.load(path)
    assert "\n" not in str(caught.value)


def test_no_file_and_a_cut_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        VectorSet.load(tmp_path / "none.safetensors")
    path = tmp_path / "v.safetensors"
    save_file({"vectors": torch.ones(20, 40)}, str(path))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        VectorSet.load(path)
