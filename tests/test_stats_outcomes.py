"""What counts as missing, improved, degraded and recovered, case by case."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steerback.stats import Cutoffs, Outcome, is_degraded, outcome
from steerback.types import Attempt, Verdict


def judged(*scores: float | None, status: str = "ok", text: str = "an answer", **more) -> Outcome:
    attempts = tuple(Attempt(i, i + 1, score) for i, score in enumerate(scores))
    return outcome("t", "c", Verdict("t", "j", attempts, status), text, **more)


@pytest.mark.parametrize(
    ("scores", "multi", "first", "last", "improved", "esr"),
    [
        ((40.0,), False, 40, 40, None, False),
        ((20.0, 80.0), True, 20, 80, True, True),
        ((80.0, 20.0), True, 80, 20, False, False),
        ((50.0, 50.0), True, 50, 50, False, False),
        ((20.0, None, 30.0), True, 20, 30, True, True),
        ((20.0, 90.0, 10.0), True, 20, 10, False, False),
        ((0.0, 100.0), True, 0, 100, True, True),
    ],
)
def test_scored_trials(scores, multi, first, last, improved, esr):
    o = judged(*scores)
    assert not o.missing
    assert (o.multi, o.first, o.last, o.improved, o.esr) == (multi, first, last, improved, esr)
    assert o.delta == last - first
    assert o.n_attempts == len(scores)


@pytest.mark.parametrize(
    "scores",
    [(), (None,), (None, 50.0), (50.0, None), (math.nan,), (101.0, 50.0), (-1.0,), (math.inf,)],
)
def test_a_trial_without_a_valid_first_and_last_score_is_missing(scores):
    o = judged(*scores, thirds=(10.0, 90.0))
    assert o.missing
    unknown = (o.multi, o.first, o.last, o.delta, o.improved, o.esr, o.three_way, o.implicit)
    assert unknown == (None,) * 8


@pytest.mark.parametrize("status", ["unscored", "error"])
def test_a_verdict_that_is_not_ok_is_missing_whatever_its_attempts_say(status):
    assert judged(50.0, status=status).missing


def test_degraded_is_known_of_missing_trials():
    assert judged(status="error", text="go " * 5).degraded


@pytest.mark.parametrize(
    ("text", "degraded"),
    [
        ("", False),
        ("the the the the", False),
        ("the the the the the", True),
        ("The, the. THE\nthe -- the!", True),
        ("a a a a a a", False),
        ("1 1 1 1 1 1", False),
        ("10 10 10 10 10", True),
        ("no no x no no no", False),
        ("don't don't don't don't don't", True),
        ("well-known " * 5, True),
        ("straße STRASSE straße strasse Straße", True),
        ("café café café café café", True),
        ("to be to be to be to be to be", False),
        ("hahahahaha", False),
        ("go go go go gone", False),
    ],
)
def test_degraded(text, degraded):
    assert is_degraded(text) is degraded


@given(st.lists(st.sampled_from(["aa", "bb", "c"]), max_size=30))
def test_degraded_equals_a_search_of_all_windows(words):
    windows = [words[i : i + 5] for i in range(len(words) - 4)]
    slow = any(len(set(w)) == 1 and len(w[0]) > 1 for w in windows)
    assert is_degraded(" ".join(words)) is slow


@pytest.mark.parametrize(
    ("scores", "text", "three_way"),
    [
        ((50.0,), "fine", "on_topic"),
        ((49.9,), "fine", "steered"),
        ((10.0, 90.0), "fine", "on_topic"),
        ((90.0, 10.0), "fine", "steered"),
        ((90.0,), "so so so so so", "degraded"),
    ],
)
def test_three_way(scores, text, three_way):
    assert judged(*scores, text=text).three_way == three_way


def test_cutoffs_are_settings():
    strict = Cutoffs(on_topic=80, implicit_margin=50)
    o = judged(60.0, thirds=(20.0, 60.0), cutoffs=strict)
    assert (o.three_way, o.implicit) == ("steered", False)


@pytest.mark.parametrize(
    ("scores", "thirds", "implicit", "decline"),
    [
        ((40.0,), (20.0, 40.0), True, False),
        ((40.0,), (20.0, 39.9), False, False),
        ((40.0,), (40.0, 20.0), False, True),
        ((20.0, 80.0), (20.0, 80.0), False, False),
        ((40.0,), None, None, None),
        ((40.0,), (None, 80.0), None, None),
        ((40.0,), (20.0, None), None, None),
        ((40.0,), (20.0, math.nan), None, None),
    ],
)
def test_implicit_recovery(scores, thirds, implicit, decline):
    o = judged(*scores, thirds=thirds)
    assert (o.implicit, o.implicit_decline) == (implicit, decline)
