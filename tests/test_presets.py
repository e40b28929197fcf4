"""The published models: every number of the paper's tables, and the files behind release names."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import small

from steerback import presets, protocols
from steerback.cli import main
from steerback.errors import UserError
from steerback.report.published import published
from steerback.run import run

PAPER = {
    "llama-3.3-70b-instruct": ("meta-llama/Llama-3.3-70B-Instruct", 33, 50, 50, (7, 5, 100)),
    "llama-3.1-8b-instruct": ("meta-llama/Llama-3.1-8B-Instruct", 19, 19, 19, (10, 10, 50)),
    "gemma-2-2b-it": ("google/gemma-2-2b-it", 16, 16, 16, (150, 75, 300)),
    "gemma-2-9b-it": ("google/gemma-2-9b-it", 26, 26, 26, (280, 280, 560)),
    "gemma-2-27b-it": ("google/gemma-2-27b-it", 22, 22, 22, (1500, 1500, 5000)),
}
"""name -> repository, steer layer, SAE layer, readout layer, (mean, sd, upper) of the prior."""

RELEASES = {
    "llama-3.3-70b-instruct": ("goodfire-llama-3.3-70b-instruct", "layer_50"),
    "llama-3.1-8b-instruct": ("goodfire-llama-3.1-8b-instruct", "layer_19"),
    "gemma-2-2b-it": ("gemma-scope-2b-pt-res-canonical", "layer_16/width_16k/canonical"),
    "gemma-2-9b-it": ("gemma-scope-9b-pt-res-canonical", "layer_26/width_16k/canonical"),
    "gemma-2-27b-it": ("gemma-scope-27b-pt-res-canonical", "layer_22/width_131k/canonical"),
}


@pytest.mark.parametrize("name", PAPER)
def test_a_preset_has_the_numbers_of_the_paper(name: str) -> None:
    made = presets.from_preset(name)
    repository, steer, sae, readout, prior = PAPER[name]
    assert made.model.source == repository
    assert (made.model.steer_layer, made.sae.layer, made.readout_layer) == (steer, sae, readout)
    strengths = made.calibration
    assert (strengths.mean, strengths.sd, strengths.upper) == prior
    assert (strengths.unit, strengths.method, strengths.target) == ("raw", "bisection", 30.0)
    assert (strengths.rounds, 1 <= strengths.prompts_per_round <= 5) == (10, True)
    drawn = made.sampling
    assert (drawn.temperature, drawn.max_new_tokens, drawn.repetition_penalty) == (0.6, 512, 1.1)
    chosen = made.directions
    assert (chosen.count, chosen.concreteness_min, chosen.relevance) == (500, 65.0, "top-100")


def test_every_published_model_has_a_preset() -> None:
    models = {repository for repository, *_ in PAPER.values()}
    assert set(published().models("esr")) == models
    for name, (repository, *_) in PAPER.items():
        assert presets.find_preset(repository) == presets.find_preset(name) == name


@pytest.mark.parametrize("name", PAPER)
def test_sae_and_labels_are_those_behind_the_release_name(name: str) -> None:
    directory = pytest.importorskip("sae_lens.loading.pretrained_saes_directory")
    release, sae_id = RELEASES[name]
    entry = directory.get_pretrained_saes_directory()[release]
    made = presets.from_preset(name)
    at = entry.saes_map[sae_id]
    file = at if entry.conversion_func == "goodfire" else f"{at}/params.npz"
    assert made.sae.spec == f"hf:{entry.repo_id}/{file}"
    assert made.directions.labels == f"neuronpedia:{entry.neuronpedia_id[sae_id]}"


def test_init_takes_a_repository_as_its_preset(capsys: pytest.CaptureFixture[str]) -> None:
    main(["init", "google/gemma-2-2b-it"])
    by_repository = capsys.readouterr().out
    main(["init", "gemma-2-2b-it"])
    assert by_repository == capsys.readouterr().out


def test_init_for_any_model_and_sae(tmp_path: Path) -> None:
    file = tmp_path / "qwen.toml"
    sae = "saelens:qwen2.5-7b-instruct-andyrdt/resid_post_layer_15_trainer_1"
    model = "Qwen/Qwen2.5-7B-Instruct"
    main(["init", model, "--sae", sae, "--layer", "15", "--to", str(file)])
    made = presets.load(file, protocols.settings())
    assert (made.name, made.model.source, made.sae.spec) == ("qwen2.5-7b-instruct", model, sae)
    assert (made.model.steer_layer, made.sae.layer, made.readout_layer) == (15, 15, 15)
    assert made.calibration.unit == "resid"
    apart = presets.from_anywhere("a/b", "s", 3, sae_layer=5, seed=9)
    assert (apart.model.steer_layer, apart.sae.layer, apart.seed) == (3, 5, 9)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["gema-2-2b-it"], "unknown model 'gema-2-2b-it'; did you mean 'gemma-2-2b-it'"),
        (["a/b"], "'a/b' is no preset, so --sae and --layer must be given"),
        (["a/b", "--sae", "x"], "'a/b' is no preset, so --layer must be given"),
        (["gemma-2-2b-it", "--layer", "3"], "is a preset, which says itself what --layer would"),
    ],
)
def test_init_says_what_is_missing(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leave:
        main(["init", *words])
    assert leave.value.code == 2
    assert says in capsys.readouterr().err


def test_another_sae_than_the_one_meant_is_refused(tmp_path: Path) -> None:
    made = small(tmp_path / "run", sae={"latents": 7})
    with pytest.raises(UserError, match=r"has \d+ latents, but sae.latents is 7"):
        run(made)


def test_steer_refuses_an_unknown_quantisation(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["steer", "organism-resister", "Why?", "--latent", "1", "--strength", "1"]
    with pytest.raises(SystemExit) as leave:
        main([*words, "--quantize", "int3"])
    assert leave.value.code == 2
    assert "quantize is 'int3'; use none, int8, fp8, int4" in capsys.readouterr().err


def test_hf_specs_that_name_nothing() -> None:
    from steerback.sae import load_sae

    for spec in ("hf:", "hf:owner", "hf:owner/repository"):
        with pytest.raises(UserError, match="expected hf:OWNER/REPOSITORY/PATH"):
            load_sae(spec)
