"""Backtracking latents: by label and by activation, told from what matches without a restart share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import fake_bench as world
import numpy as np
import pytest
import test_traces as traces
from test_traces import DIRECTIONS, DRIFT, EPISODE, QUIET, WAIT, Written, written

from steerback import backtracking
from steerback.errors import UserError
from steerback.protocols.backtracking import Backtracking, Settings
from steerback.protocols.base import Analysis
from steerback.protocols.bench import Floats, Pooling, Text

PHRASE, SENTENCE = 50, 51
"""Fires in the restart phrase; at the start of any sentence."""
LABELS = {PHRASE: "phrases of starting over", 7: "cheese", 8: "error messages", 9: "Oops, mistakes"}


def test_weights_are_of_whole_words_in_any_case_each_once():
    found = backtracking.Keywords({"start* over": 4, "oops": 3, "wait": 2, "waiting room": -3})
    assert found.weight("Starting  over; STARTS OVER") == 4
    assert found.weight("oops wait") == 5
    assert found.weight("the waiting room") == -3
    assert found.weight("await, waiter") == 0


def test_the_packaged_words_tell_restarts_from_what_looks_alike():
    known = backtracking.load()
    wanted = (
        "backtracking or self-correction",
        "Phrases of starting over",
        "oops, wait",
        "apologies",
    )
    for label in wanted:
        assert known.weight(label) >= 2, label
    for label in ("waiting rooms", "bread", "error messages in logs", "correctional facilities"):
        assert known.weight(label) < 2, label


def test_keywords_of_ones_own(tmp_path):
    file = tmp_path / "own.toml"
    file.write_text('[weights]\n"cheese" = 5\n')
    found = backtracking.by_label(LABELS, backtracking.load(file), 2.0)
    assert found == [(7, 5.0)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no table"),
        ("[weights]\n", "no table"),
        ('[weights]\n"cheese" = "much"\n', "own.toml:2: the weight of 'cheese' should be a number"),
        ('[weights]\n"*" = 1\n', "should hold letters"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, text, says):
    file = tmp_path / "own.toml"
    file.write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        backtracking.load(file)
    assert "\n" not in str(caught.value)


class Spoken(Written):
    """Besides the latents of `Written`, one of the phrase and one of the start of sentences."""

    def read(
        self,
        texts: Sequence[Text],
        *,
        layer: int,
        pool: Pooling = "max",
        latents: Sequence[int] | None = None,
    ) -> Floats:
        assert pool == "max"
        return np.stack([_pieces(t).max(axis=0) for t in texts])


def _pieces(text: Text) -> Floats:
    said = "".join(map(chr, text.response_ids))
    out = traces._activations(text)
    for start in (0, len("The sea is deep. "), len(DRIFT)):
        out[start : start + 1, SENTENCE] += 9
    if text.prompt_ids[0] % 1000 < 50:  # an episode: known before it comes, as a cause would be
        out[len(DRIFT) - 4 : len(DRIFT), traces.PREDICTOR] += 9
    if said.startswith(DRIFT + WAIT[:1]):
        out[len(DRIFT) : len(DRIFT + WAIT), PHRASE] += 9
    return out[text.skip :]


@pytest.fixture
def bench(tmp_path: Path):
    made = Spoken(tmp_path / "run")
    made.labels = LABELS
    rows = []
    for k in DIRECTIONS:
        for n in range(4):
            rows += [
                written("esr", k, n, EPISODE, 10.0, 90.0),
                written("esr", k, 50 + n, QUIET, 12.0 + n),
            ]
    made.store.add([(t, g) for t, g, _ in rows])
    made.store.add_verdicts([v for _, _, v in rows])
    yield made
    made.store.close()


def analysed(bench: Spoken, **changes) -> Analysis:
    settings = Settings(**changes)
    found = Backtracking().before(bench, world.inputs(), settings)
    stored = {"settings": settings.model_dump(mode="json"), "found": found}
    bench.store.put_artifact("found/backtracking", stored)
    return Backtracking().analyse(bench.records)


def test_latents_of_the_phrase_and_of_what_precedes_it_are_found_and_hold_up(bench):
    before, at, labelled = analysed(bench).sheets
    assert [row[0] for row in before.rows] == [traces.PREDICTOR]
    # the start of a sentence is in the match too
    assert {row[0] for row in at.rows} == {PHRASE, traces.REVERSED}
    for sheet, n in ((before, 1), (at, 2)):
        row = dict(zip(sheet.columns, sheet.rows[0], strict=True))
        assert row["AUC, held out"] == 1
        assert row["p (Holm, all latents)"] < 1e-6
        assert f"{n} of these {n} pass again" in sheet.notes[1]
    assert [row[0] for row in labelled.rows] == [9, PHRASE]
    assert labelled.columns[3:] == (
        "AUC before",
        "AUC before, held out",
        "AUC at",
        "AUC at, held out",
    )
    assert labelled.rows[1][-2:] == (1.0, 1.0)
    assert labelled.rows[1][3] < 0.8
    assert "2 of 4 labels" in labelled.notes[0]
    sheets = (before, at, labelled)
    assert all(len(row) == len(s.columns) for s in sheets for row in s.rows)


def test_halves_share_no_direction(bench):
    found = Backtracking().before(bench, world.inputs(), Settings())
    assert sum(found["directions"]) == 17
    assert sum(found["pairs"]) == 17 * 4


def test_too_few_episodes_leave_the_labels(bench):
    (labelled,) = analysed(bench, episodes=6).sheets
    assert len(labelled.rows) == 2
    assert "too few to rank" in labelled.notes[-1]


def test_before_it_ran_there_is_nothing_to_say(bench):
    assert Backtracking().analyse(bench.records) == Analysis()
