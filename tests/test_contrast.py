"""Directions from texts: by their formulas, with provenance, and taken by runs as latents are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from runs import small

from steerback import organism
from steerback.cli import main
from steerback.contrast import Contrast, _Texts, load_contrasts, make, nearest, plain_text
from steerback.errors import UserError
from steerback.lab import SOURCE, load_engine
from steerback.presets import from_preset
from steerback.records import Records
from steerback.run import run
from steerback.store import Store
from steerback.vectors import VectorSet


@pytest.fixture(scope="module")
def engine():
    return load_engine(from_preset("organism-resister"), 8)[0]


@pytest.fixture(scope="module")
def topics() -> list[Contrast]:
    return load_contrasts("organism")


@pytest.fixture(scope="module")
def made(engine, topics) -> VectorSet:
    return make(engine, 1, topics, random_ones=3, seed=5)


def code(arguments: list[str]) -> int | str | None:
    try:
        main(arguments)
    except SystemExit as leave:
        return leave.code
    return 0


def test_difference_of_means_by_hand(engine, topics, made) -> None:
    def mean(texts) -> np.ndarray:
        streams = engine.streams([plain_text(engine, t) for t in texts], 1)
        return np.mean([h.numpy().astype(np.float64).mean(0) for h in streams], axis=0)

    for n in (0, 17):
        high, low = mean(topics[n].positive), mean(topics[n].negative)
        found = made.directions([n])[0].numpy()
        np.testing.assert_allclose(found, high - low, rtol=1e-3, atol=1e-3)
        apart = made.provenance["separations"][n]
        assert apart == pytest.approx(np.linalg.norm(high - low), rel=1e-4)


def test_methods_share_their_norm_and_point_to_the_positive_side(engine, topics, made) -> None:
    few = topics[:5]
    plain = make(engine, 1, few).directions(range(5))
    for method in ("whitened", "pca"):
        other = make(engine, 1, few, method=method).directions(range(5))
        torch.testing.assert_close(other.norm(dim=1), plain.norm(dim=1), rtol=1e-4, atol=1e-4)
        cosine = torch.nn.functional.cosine_similarity(other, plain)
        assert (cosine > 0.3).all()
        assert (cosine < 0.9999).all()


def test_whitening_is_fishers_discriminant(engine, topics) -> None:
    [c] = topics[:1]
    texts = _Texts.read(engine, 1, [c])
    found, _ = texts.vector(c, "whitened")
    rows, means = [], {}
    for kind in ("positive", "negative"):
        streams = engine.streams([plain_text(engine, t) for t in getattr(c, kind)], 1)
        centred = [h.numpy().astype(np.float64) for h in streams]
        means[kind] = np.mean([h.mean(0) for h in centred], axis=0)
        rows += [h - h.mean(0) for h in centred]
    tokens = np.concatenate(rows)
    pooled = tokens.T @ tokens / (len(tokens) - len(rows))
    pooled += 0.1 * np.trace(pooled) / len(pooled) * np.eye(len(pooled))
    want = np.linalg.solve(pooled, means["positive"] - means["negative"])
    cosine = found @ want / np.linalg.norm(found) / np.linalg.norm(want)
    assert cosine == pytest.approx(1, abs=1e-6)


def test_random_ones_have_the_median_norm_and_follow_the_seed(engine, topics, made) -> None:
    assert made.labels[-3:] == ("random 1", "random 2", "random 3")
    assert made.provenance["separations"][-3:] == [None] * 3
    norms = made.directions(range(made.n)).norm(dim=1)
    torch.testing.assert_close(norms[-3:], norms[:-3].quantile(0.5).expand(3), rtol=0.02, atol=0.1)
    again = make(engine, 1, topics[:2], random_ones=3, seed=6)
    assert not torch.allclose(again.directions([2]), made.directions([made.n - 3]))


def test_topics_lie_near_their_own_latents(engine, made) -> None:
    labels = organism.labels("resister")
    near = nearest(made, engine, SOURCE, 2)
    first = [labels[row[0][0]].label for row in near[:48]]
    assert sum(a == b for a, b in zip(first, made.labels[:48], strict=True)) >= 36
    assert all(row[0][1] >= row[1][1] for row in near)
    [alone] = nearest(made, engine, SOURCE, 2, [7])
    assert [k for k, _ in alone] == [k for k, _ in near[7]]
    assert [c for _, c in alone] == pytest.approx([c for _, c in near[7]], abs=1e-6)


# --- texts -------------------------------------------------------------------------------------


def test_without_negative_texts_the_other_tables_stand_in(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text('[a]\npositive = ["x y"]\n[b]\npositive = ["z"]\nnegative = ["w"]\n')
    assert load_contrasts(str(own)) == [
        Contrast("a", ("x y",), ("z",)),
        Contrast("b", ("z",), ("w",)),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no direction"),
        ('[a]\npositive = ["x"]\n', "no negative texts"),
        ('[a]\npositive = []\nnegative = ["x"]\n', r"\[a\] is to hold"),
        ('[a]\npositve = ["x"]\n', r"\[a\] is to hold"),
        ('[a]\npositive = [3]\nnegative = ["x"]\n', r"\[a\] is to hold"),
        ("a = 3\n", r"\[a\] is to hold"),
    ],
)
def test_texts_that_cannot_be_used_are_named(tmp_path: Path, text: str, says: str) -> None:
    own = tmp_path / "own.toml"
    own.write_text(text)
    with pytest.raises(UserError, match=says):
        load_contrasts(str(own))


def test_texts_that_do_not_differ_give_no_direction(engine) -> None:
    text = ("Use the oven to bake the bread.",)
    with pytest.raises(UserError, match=r"\[same\]: both kinds of text give one mean"):
        make(engine, 1, [Contrast("same", text, text)])


# --- a run on vectors --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("vectors") / "topics.safetensors"
    made.save(place)
    return place


def test_all_that_takes_latents_takes_vectors(file: Path, tmp_path: Path) -> None:
    amount = {"prompts_per_direction": 4}
    names = ["baseline", "esr", "detectors", "matching", "ablation", "traces", "prefill", "sweep"]
    config = small(
        tmp_path / "run",
        protocols=[*names, "heldout", "geometry"],
        directions={"count": 5, "vectors": str(file)},
        settings={
            **dict.fromkeys(("baseline", "esr"), amount),
            "ablation": {**amount, "heldout_prompts_per_direction": 2},
            "matching": {"random_sets": 1},
            "detectors": {"derangements": 1},
            "sweep": {"prompts_per_direction": 1, "of_threshold": [0.5, 1.0]},
            "heldout": {"protocols": ["esr"]},
        },
    )
    found = run(config)
    with Store.open(tmp_path / "run", mode="ro") as store:
        records = Records(store)
        steered = [t for t, _ in store.trials(protocol="esr")]
        chosen = store.get_artifact("latents")
        clamped = [t for t, _ in store.trials(protocol="ablation", arm="detectors")]
        assert next(iter(records.of("esr"))).trial.cluster.startswith("vectors:")
    assert {t.steered_by.source for t in steered} == {"vectors"}
    assert {i.source for t in clamped for i in t.interventions if i.kind == "clamp"} == {"sae"}
    assert found["esr"].summaries[0].first_score.value < 70
    topic = {q.text: q.topic for q in organism.questions("eval")}
    for c in chosen:
        own = [q for q in topic if topic[q] == c["label"]]
        assert set(own) <= set(c["skip"]) or c["label"].startswith("random")
        assert len(c["skip"]) <= len(own) + 2
    assert all(topic[t.question] != _label(chosen, t) for t in steered)


def _label(chosen, trial) -> str:
    return next(c["label"] for c in chosen if c["index"] == trial.steered_by.index)


def test_another_file_under_the_same_name_is_refused(made, file: Path, tmp_path: Path) -> None:
    place = tmp_path / "mine.safetensors"
    made.save(place)
    amount = {"baseline": {"prompts_per_direction": 1}}
    config = small(
        tmp_path / "run",
        protocols=["baseline"],
        directions={"count": 1, "vectors": str(place)},
        settings=amount,
    )
    run(config)
    VectorSet("v", made.directions([3, 2, 1, 0])).save(place)
    with pytest.raises(UserError, match="file of vectors"):
        run(config)


def test_the_command_writes_what_it_says(tmp_path: Path, capsys) -> None:
    own, place = tmp_path / "own.toml", tmp_path / "own.safetensors"
    own.write_text(
        '[bread]\npositive = ["Knead the dough and bake the crusty loaf."]\n'
        'negative = ["Tie the rope and hoist the sail."]\n'
    )
    arguments = ["vectors", "make", str(place), "--model", "organism-resister"]
    assert not code([*arguments, "--texts", str(own), "--random", "1", "--layer", "2"])
    found = VectorSet.load(place)
    assert (found.n, found.labels, found.provenance["layer"]) == (2, ("bread", "random 1"), 2)
    assert found.provenance["model_hash"]
    assert len(found.provenance["nearest"][0]) == 3
    assert not code(["vectors", "show", str(place)])
    assert "method: means" in capsys.readouterr().out
    assert code(arguments) == 2
    assert code([*arguments[:2], str(tmp_path / "b"), *arguments[3:], "--method", "mean"]) == 2
    said = capsys.readouterr().err
    assert "exists; choose another name" in said
    assert "unknown method 'mean'" in said
