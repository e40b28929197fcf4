"""Latent selection against brute force, and the errors of a label file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steerback.errors import UserError
from steerback.labels import Label, read_labels
from steerback.latents import (
    Chosen,
    Rules,
    Scope,
    as_json,
    from_json,
    relevant,
    select,
    usable,
)


def activations(prompts: int, latents: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.gamma(1.0, size=(prompts, latents)) * (rng.random((prompts, latents)) < 0.4)
    return values.astype(np.float32)


@pytest.mark.parametrize("latents", [1, 17, 100, 101, 333])
def test_relevance_equals_sorting_each_prompt(latents: int) -> None:
    acts = activations(5, latents)
    for prompt, row in enumerate(acts):
        ranked = sorted(range(latents), key=lambda k: -row[k])[:100]
        top = {k for k in ranked if row[k] > 0}
        assert set(np.flatnonzero(relevant(acts, "top-100")[prompt])) == top
        assert set(np.flatnonzero(relevant(acts, "zero")[prompt])) == set(np.flatnonzero(row > 0))
    assert not relevant(acts, "none").any()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 8),
    rule=st.sampled_from(["top-100", "zero", "none"]),
    scope=st.sampled_from(["run", "pair"]),
    floor=st.sampled_from([0.0, 65.0]),
)
def test_whatever_is_chosen_passes_every_rule(
    seed: int, count: int, rule: str, scope: str, floor: float
) -> None:
    rng = np.random.default_rng(seed)
    prompts, answers = activations(6, 40, seed), activations(4, 40, seed + 1)
    prompts[:, ::3] = 0
    answers[:, ::6] = 0
    labels = {k: Label(f"l{k}", float(rng.integers(0, 101))) for k in range(40)}
    questions = [f"q{i}" for i in range(6)]
    rules = Rules(count, floor, rule, scope, seed)
    chosen, funnel = select(rules, questions, prompts, answers, labels)
    left = [n for _, n in funnel.stages]
    assert left == sorted(left, reverse=True)
    assert left[-1] == len(chosen) <= count
    if left[-1] < count:  # nothing that passes was overlooked
        assert left[2] == left[1]
    has_to_do = relevant(prompts, rule)
    for c in chosen:
        assert prompts[:, c.index].max() > 0 or answers[:, c.index].max() > 0
        assert floor == 0 or labels[c.index].concreteness >= floor
        assert c.skip == tuple(q for q, yes in zip(questions, has_to_do[:, c.index]) if yes)  # noqa: B905
        assert len(c.skip) < 6 if scope == "pair" else c.skip == ()
    assert len({c.index for c in chosen}) == len(chosen)
    assert from_json(as_json(chosen)) == chosen


def test_another_seed_draws_others() -> None:
    prompts, answers = activations(3, 200), activations(3, 200, 1)
    drawn = [
        [c.index for c in select(Rules(9, 0, "none", "run", s), "abc", prompts, answers, {})[0]]
        for s in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_only_labels_without_a_rating_are_rated() -> None:
    prompts, answers = activations(3, 40) + 1, activations(3, 40, 1)
    labels = {k: Label(f"l{k}", 90.0 if k % 2 else None) for k in range(30)}
    asked: list[str] = []

    def rate(texts: list[str]) -> list[float | None]:
        asked.extend(texts)
        return [None if text == "l4" else 70.0 for text in texts]

    chosen, _ = select(Rules(40, 65, "none", "run", 0), "abc", prompts, answers, labels, rate)
    assert sorted(asked) == sorted(f"l{k}" for k in range(0, 30, 2))
    assert {c.index for c in chosen} == set(range(30)) - {4}


def test_labels_are_read_with_and_without_ratings(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text('index_in_sae,label,concreteness\n3,"boats, sails",91\n5,of,\n', "utf-8")
    assert read_labels(file) == {3: Label("boats, sails", 91.0), 5: Label("of", None)}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no rows"),
        ("latent,label\n1,a\n", "latent, label"),
        ("index_in_sae,label\n1,a\nx,b\n", "line 3"),
    ],
)
def test_a_bad_label_file_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(text, "utf-8")
    with pytest.raises(UserError, match=says) as caught:
        read_labels(file)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="cannot be read"):
        read_labels(tmp_path / "none.csv")


def test_a_choice_survives_json() -> None:
    chosen = [Chosen(3, "a", ("q",)), Chosen(5, "")]
    assert from_json(as_json(chosen)) == chosen


@pytest.mark.parametrize(
    ("skipped", "scope", "kept"),
    [(0, "run", True), (1, "run", False), (0, "pair", True), (3, "pair", True), (4, "pair", False)],
)
def test_a_direction_keeps_two_questions_of_five_or_goes(
    skipped: int, scope: Scope, kept: bool
) -> None:
    """One to search a strength on and another to verify it on."""
    assert usable(skipped, 5, scope) is kept
