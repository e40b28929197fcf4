"""Claims become attempts only where the response bears them out."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steerback.errors import UserError
from steerback.judge.base import Request
from steerback.judge.parse import BadAnswer
from steerback.judge.segment import segment
from steerback.judge.support import Evidence
from steerback.judge.verify import Mode, Notes, check_mode, read_notes, verdict_of
from steerback.types import Verdict

OFF = "To bake bread you first need a ship, and every ship needs a sail and a compass."
ON = "Mix flour, water, salt and yeast. Knead for ten minutes and let it rise."
RESTART = "Wait, that's not right. Let me start over."
TWO = f"{OFF} {RESTART} {ON}"
AT = TWO.index(RESTART)


def grade(response: str, claims: list[tuple[str, float]], mode: Mode = "verify") -> Verdict:
    said = json.dumps({"attempts": [{"text": t, "score": s} for t, s in claims]})
    return verdict_of(Request("k", "How do you bake bread?", response), "j", said, mode)


def notes(verdict: Verdict) -> Notes:
    found = read_notes(verdict.raw)
    assert found is not None
    return found


def shape(verdict: Verdict) -> list[tuple[int, float | None]]:
    """Starts and scores, after a check that the attempts tile the response."""
    assert all(a.end == b.start for a, b in pairwise(verdict.attempts))
    assert verdict.attempts[0].start == 0
    return [(a.start, a.score) for a in verdict.attempts]


@pytest.mark.parametrize("mode", ["verify", "trust"])
def test_one_attempt(mode: Mode) -> None:
    verdict = grade(ON, [(ON, 90)], mode)
    assert (verdict.status, shape(verdict)) == ("ok", [(0, 90.0)])
    assert verdict.attempts[0].end == len(ON)
    assert not notes(verdict).missed
    assert not notes(verdict).rejected


@pytest.mark.parametrize(
    "second",
    [f"{RESTART} {ON}", f"Let me start over. {ON}", ON, "Wait, that's not right.", "Mix flour"],
    ids=["phrase", "its second sentence", "after the phrase", "phrase only", "opening words"],
)
def test_a_boundary_near_the_phrase_moves_to_the_phrase(second: str) -> None:
    assert segment(TWO) == [0, AT]
    verdict = grade(TWO, [(OFF, 5), (second, 95)])
    assert (verdict.status, shape(verdict)) == ("ok", [(0, 5.0), (AT, 95.0)])
    assert notes(verdict).rejected == []


def test_trust_keeps_the_judges_own_boundary() -> None:
    verdict = grade(TWO, [(OFF, 5), (ON, 95)], "trust")
    assert shape(verdict) == [(0, 5.0), (TWO.index(ON), 95.0)]


STEPS = "Step 1: sift the flour well. Step 2: add the water. Step 3: knead."


def test_invented_attempts_are_rejected_and_their_scores_averaged_by_length() -> None:
    parts = [(0, 80.0), (STEPS.index("Step 2"), 50.0), (STEPS.index("Step 3"), 20.0)]
    verdict = grade(STEPS, [(STEPS[at:], score) for at, score in parts])
    by_hand = (80 * parts[1][0] + 50 * (parts[2][0] - parts[1][0])) / len(STEPS)
    by_hand += 20 * (len(STEPS) - parts[2][0]) / len(STEPS)
    assert len(verdict.attempts) == 1
    assert verdict.scores == pytest.approx((by_hand,))
    assert [(r.at, r.score, r.why) for r in notes(verdict).rejected] == [
        (at, score, "no restart there") for at, score in parts[1:]
    ]
    trusted = grade(STEPS, [(STEPS[at:], score) for at, score in parts], "trust")
    assert shape(trusted) == parts


def test_text_that_is_not_in_the_response_is_no_attempt() -> None:
    verdict = grade(ON, [(ON, 40), ("Wait, let me correct that. Use rye.", 95)])
    assert (verdict.status, shape(verdict)) == ("ok", [(0, 40.0)])
    (rejected,) = notes(verdict).rejected
    assert (rejected.at, rejected.why, rejected.score) == (None, "not in the response", 95.0)


@pytest.mark.parametrize("mode", ["verify", "trust"])
def test_nothing_of_it_in_the_response_is_a_bad_answer(mode: Mode) -> None:
    with pytest.raises(BadAnswer, match="stands in the response"):
        grade(ON, [("Take a rye loaf", 40)], mode)


@pytest.mark.parametrize("mode", ["verify", "trust"])
def test_an_unknown_first_attempt_leaves_the_trial_unscored(mode: Mode) -> None:
    verdict = grade(TWO, [("To bake a ship", 5), (f"{RESTART} {ON}", 95)], mode)
    assert verdict.status == "unscored"
    assert shape(verdict) == [(0, None), (AT, 95.0)]
    assert notes(verdict).why == "the first attempt has no score"


def test_a_judge_that_reports_only_the_correction_leaves_the_trial_unscored() -> None:
    assert grade(TWO, [(f"{RESTART} {ON}", 95)]).status == "unscored"


def test_attempts_out_of_order_are_rejected() -> None:
    verdict = grade(TWO, [(ON, 95), (OFF, 5)])
    assert [(r.why, r.at) for r in notes(verdict).rejected] == [("out of order", 0)]


def test_a_first_attempt_that_skips_a_heading_is_no_rejected_boundary() -> None:
    verdict = grade(f"# Bread\n\n{ON}", [(ON, 90)])
    assert shape(verdict) == [(0, 90.0)]
    assert not notes(verdict).rejected


@pytest.mark.parametrize("mode", ["verify", "trust"])
def test_a_missed_restart_is_noted_and_not_made_up(mode: Mode) -> None:
    verdict = grade(TWO, [(TWO, 50)], mode)
    assert shape(verdict) == [(0, 50.0)]
    assert notes(verdict).missed == [AT]


def test_a_restart_bears_out_one_boundary_only() -> None:
    verdict = grade(TWO, [(OFF, 5), (f"{RESTART} {ON}", 60), (ON, 100)])
    assert [s for s, _ in shape(verdict)] == [0, AT]
    assert [r.at for r in notes(verdict).rejected] == [TWO.index(ON)]


def test_no_attempt_is_unscored() -> None:
    verdict = grade(ON, [])
    assert (verdict.status, verdict.attempts) == ("unscored", ())


@pytest.mark.parametrize(
    ("before", "second", "counts"),
    [
        (f"{ON}\nMe: ", "Wait, that's not right. Let me start over. Use rye.", True),
        ("Sure! ", "Wait, that's not right. Let me start over. Use rye.", True),
        (f"{ON}\nMe: ", "Wait ten minutes. Let the dough rise.", False),
        (f"{ON} ", "However, rye works too.", False),
        (f"{ON} ", "Actually, rye works too.", False),
        (f"{ON} ", "Hold on to the bowl while you stir.", False),
        (f"{ON} ", "Step 2: let it rise.", False),
    ],
)
def test_where_context_speaks_against_a_phrase_the_judge_decides(
    before: str, second: str, counts: bool
) -> None:
    response = before + second
    assert segment(response) == [0], "without a judge it is none"
    verdict = grade(response, [(before, 50), (second, 60)])
    assert [s for s, _ in shape(verdict)] == ([0, len(before)] if counts else [0])
    assert bool(notes(verdict).rejected) == (not counts)


def test_a_phrase_in_a_quotation_bears_nothing_out() -> None:
    response = f'{ON} The apprentice cried "Hold on, I made a mistake there" and ran out.'
    second = response[response.index("Hold on") :]
    assert len(grade(response, [(ON, 50), (second, 60)]).attempts) == 1


SENTENCES = [OFF, ON, RESTART, "Hold on, I got off track.", "“Wait,” she said.", "Step 2: *stir*."]


@given(st.lists(st.sampled_from(SENTENCES), min_size=1, max_size=6), st.data())
@settings(max_examples=80, deadline=None)
def test_whatever_a_judge_claims_attempts_tile_and_scores_are_its_own(
    sentences: list[str], data: st.DataObject
) -> None:
    response = " ".join(sentences)
    cuts = data.draw(st.lists(st.integers(0, len(response) - 1), min_size=1, max_size=5))
    claims = [(response[c:].strip(), float(n * 20)) for n, c in enumerate(sorted(cuts))]
    for mode in ("verify", "trust"):
        verdict = grade(response, [c for c in claims if c[0]], mode)
        starts = shape(verdict)
        assert verdict.attempts[-1].end == len(response)
        assert all(s is None or 0 <= s <= 20 * (len(cuts) - 1) for _, s in starts)
        evidence = Evidence(response)
        if mode == "verify":
            assert all(evidence.at(at) == at for at, _ in starts[1:])
            assert set(notes(verdict).missed) == set(segment(response)[1:]) - {s for s, _ in starts}


def test_notes_survive_the_store_and_other_judges_have_none() -> None:
    first = notes(grade(TWO, [(TWO, 50), ("none of it", 3)]))
    assert read_notes(first.dump()) == first
    assert read_notes("topic bread; degenerate attempts: 0") is None
    assert read_notes("{}") is None


def test_the_documentation_runs() -> None:
    page = Path(__file__).parents[1] / "docs" / "judges.md"
    examples = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        exec(compile(example, str(page), "exec"), {})


def test_an_unknown_mode_is_named() -> None:
    with pytest.raises(UserError, match=r"mode 'verfy' does not exist; did you mean 'verify'\?"):
        check_mode("verfy")
