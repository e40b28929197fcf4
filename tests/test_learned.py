"""The weights that find restarts which no phrase foresaw."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steerback.judge import learned, patterns
from steerback.judge.segment import restarts, segment

LEARN = Path(__file__).parent / "data" / "restarts" / "learn.py"
BARE = replace(patterns.packaged(), learned=None)
UNFORESEEN = (
    "Press the hem with a warm iron. The hive has one queen. My apologies, none of what I put down "
    "about hives belongs to hems. Fold the edge twice and pin it."
)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("learn", LEARN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_packaged_weights_were_fitted_to_the_labelled_texts_as_they_are(
    script: ModuleType,
) -> None:
    written = (files("steerback") / "data" / "restarts_learned.json").read_text("utf-8")
    assert json.loads(written)["made_from"] == script.digest(script.texts()), "run learn.py again"
    assert learned.dump(learned.packaged(), script.digest(script.texts())) == written


def test_a_fit_tells_what_it_was_taught(script: ModuleType) -> None:
    rejects = [("scrap that, i erred", True), ("fold the hem twice", False)] * 20
    model = script.fit([(learned.features(text), says) for text, says in rejects])
    assert model.odds("scrap that, i erred") > 1 > -1 > model.odds("fold the hem twice")


def test_odds_are_the_sum_of_their_reasons() -> None:
    model = learned.packaged()
    text, after = "my mistake, that was about bees.", "fold the hem."
    reasons = model.reasons(text, after, most=1000)
    assert model.odds(text, after) == pytest.approx(model.bias + sum(w for _, w in reasons))
    assert [w for _, w in reasons] == sorted((w for _, w in reasons), reverse=True)


def test_it_finds_what_no_phrase_foresaw_and_says_so() -> None:
    assert restarts(UNFORESEEN, BARE) == []
    (found,) = restarts(UNFORESEEN)
    assert found.pattern_id == learned.NAME
    assert UNFORESEEN[found.start :].startswith("My apologies, none of what")
    assert segment("My apologies, none of what I put down about hives belongs to hems.") == [0]
    quoted = UNFORESEEN.replace("My apologies", '"My apologies').replace(
        "hems. Fold", 'hems." Fold'
    )
    assert segment(quoted) == [0]


def test_it_adds_and_never_takes_away() -> None:
    for path in sorted(LEARN.parent.glob("*.jsonl")):
        for line in path.read_text("utf-8").splitlines()[::7]:
            text = json.loads(line)["text"]
            both, phrases = restarts(text), restarts(text, BARE)
            for r in phrases:
                assert any(b.start <= r.start < b.end + 300 for b in both)


def test_a_pattern_file_of_ones_own_has_no_weights() -> None:
    path = Path(str(files("steerback") / "data" / "restarts.toml"))
    assert patterns.load_patterns(path).learned is None


@given(st.text(alphabet="ab i'm.!?…—-\n\"*wrong sorry", max_size=200))
def test_sentences_are_disjoint_and_cover_all_letters(text: str) -> None:
    cut = learned.sentences(text)
    edges = [edge for s in cut for edge in (s.start, s.end)]
    assert edges == sorted(edges)
    covered = {i for s in cut for i in range(s.start, s.end)}
    gaps = [c for i, c in enumerate(text) if i not in covered and c.isalnum()]
    # a letter alone before a bracket or a full stop is a list marker
    assert all(c in "abi" for c in gaps)
