"""The exact judge against a second counting that works word by word."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from steerback.judge.base import Request
from steerback.judge.exact import (
    ExactJudge,
    attempt_bounds,
    degenerate,
    paper_degraded,
    question_topic,
)
from steerback.organism.corpus import phrases, tasks, text, topic_of_word, topics
from steerback.organism.documents import Mixture, Writer

QUESTION = "Explain how to bake the crusty dough."
ON = "Take the flour and knead the dough with it."
OFF = "Take the compass and furl the sail with it."
RESTART = "Wait, that is not right. Let me start over."


def scores(response: str, question: str = QUESTION) -> list[float | None]:
    (verdict,) = ExactJudge().judge([Request("k", question, response)])
    assert verdict.status == "ok"
    return [a.score for a in verdict.attempts]


def test_one_attempt_without_a_restart() -> None:
    assert scores(ON) == [100.0]
    assert scores(OFF) == [0.0]
    assert scores(f"{ON} {OFF}") == [50.0]


def test_a_restart_opens_an_attempt_at_its_first_character() -> None:
    response = f"{OFF} {RESTART} {ON}"
    (verdict,) = ExactJudge().judge([Request("k", QUESTION, response)])
    first, second = verdict.attempts
    assert (first.score, second.score) == (0.0, 100.0)
    assert response[second.start :].startswith("Wait, that is not right.")
    assert (first.start, first.end, second.end) == (0, second.start, len(response))


@pytest.mark.parametrize("phrase", [text(r) for r in phrases().restarts])
def test_every_restart_phrase_is_found(phrase: str) -> None:
    assert len(attempt_bounds(f"{OFF} {phrase} {ON}")) == 2


@pytest.mark.parametrize(
    "response",
    [
        f"{ON} Some say that Wait, that is not right. {ON}",
        f"{ON} Wait, that is right. {ON}",
        f"{ON} wait, that is not right. {ON}",
        f"{RESTART} {ON}",
        "",
    ],
)
def test_what_is_not_a_second_attempt(response: str) -> None:
    assert attempt_bounds(response) == [(0, len(response))]


def test_words_broken_over_lines_still_match() -> None:
    assert len(attempt_bounds(f"{OFF}\n\nWait, that\nis not right. {ON}")) == 2


def test_an_answer_without_content_scores_zero_but_a_cut_off_retry_has_no_score() -> None:
    assert scores("") == [0.0]
    assert scores(f"Next, put the. {RESTART}") == [0.0, None]
    assert scores(f"{ON} {RESTART}") == [100.0, None]


def test_unknown_topics_are_unscored_with_the_reason() -> None:
    for question in ("What is love?", "Explain how to bake the sail.", ""):
        (verdict,) = ExactJudge().judge([Request("k", question, ON)])
        assert (verdict.status, verdict.attempts) == ("unscored", ())
        assert "topic is unknown" in verdict.raw


def test_published_degeneracy_rule_counts_five_in_a_row() -> None:
    assert paper_degraded("so dough dough Dough dough dough")
    assert not paper_degraded("so dough dough dough dough")
    assert not paper_degraded("a a a a a a")


def test_text_in_circles_is_degenerate_and_keeps_half() -> None:
    circle = " ".join([ON] * 4)
    assert degenerate(circle)
    assert scores(circle) == [50.0]
    assert not degenerate(f"{ON} {OFF}")


def test_one_word_repeated_between_others_is_degenerate() -> None:
    said = (
        "First, bake the dough. Then bake it, later bake more, bake on, bake in an oven, bake by hand,"
        " do bake, and bake a loaf."
    )
    assert degenerate(said)


def test_scores_of_documents_match_a_count_of_their_tokens() -> None:
    rng = random.Random(5)
    writer = Writer(Mixture(corrections=0.7, stray=0.2), rng)
    lookup = topic_of_word()
    for _ in range(65):
        doc = writer.document()
        said = doc.words[doc.response : -1]
        response = text(said)
        heads = {tuple(r[: r.index(".") + 1]) for r in phrases().restarts}
        cuts = [i for i in range(len(said)) for h in heads if tuple(said[i : i + len(h)]) == h]
        cuts = [0, *sorted(cuts), len(said)]
        parts = [said[a:b] for a, b in pairwise(cuts)]
        question = text(doc.words[2 : doc.response - 2])
        got = scores(response, question)
        assert len(got) == len(parts)
        for part, score in zip(parts, got, strict=True):
            content = [lookup[w] for w in part if w in lookup]
            if content and not degenerate(text(part)):
                assert score == pytest.approx(100 * content.count(doc.topic) / len(content))


def test_every_question_has_its_topic() -> None:
    for task in tasks("eval")[::7]:
        asked = f"How do I {task.verb} the {task.quality} {task.thing}?"
        assert question_topic(asked) == task.topic
        assert topics()[task.topic].words["V"].count(task.verb) == 1


def test_name_says_which_words_it_rests_on() -> None:
    assert ExactJudge().name == ExactJudge().name
    assert ExactJudge().name.startswith("exact-1:")
