"""What fits the corpus: everything its writer makes, and nothing whose words are out of order."""

from __future__ import annotations

import random

import pytest

from steerback.organism import questions
from steerback.organism.corpus import phrases, text
from steerback.organism.documents import EOS, Mixture, Writer
from steerback.organism.grammar import Form, asks, form

EVERYTHING = Mixture(corrections=0.5, pushed=0.5, pushed_corrections=0.5, stray=0.2, again=0.9)


def written(mixture: Mixture, count: int) -> list[str]:
    """Answers of `count` documents."""
    writer = Writer(mixture, random.Random(0))
    documents = (writer.document() for _ in range(count))
    return [text(d.words[d.response : -1]) for d in documents if d.words[-1] == EOS]


def test_all_that_the_writer_makes_is_well_formed():
    found = written(EVERYTHING, 2000)
    for head in phrases().restart_heads:
        assert any(head in answer for answer in found)
    assert [form(a, False) for a in found] == [Form(0, a.count(".")) for a in found]


def test_what_the_token_limit_cut_off_is_not_counted():
    rng = random.Random(2)
    for answer in written(EVERYTHING, 200):
        words = answer.split()
        cut = " ".join(words[: rng.randrange(1, len(words))])
        assert form(cut, True) == Form(0, cut.count("."))
        assert form(cut, False).malformed == (not cut.endswith("."))


def test_garbled_sentences_are_malformed():
    forms = [form(answer, False) for answer in written(Mixture(1.0, garbled=0.5), 200)]
    assert sum(f.malformed > 0 for f in forms) > 150


def test_words_out_of_order_fit_nothing():
    rng, shuffled, fitting = random.Random(1), 0, 0
    for answer in written(EVERYTHING, 200):
        for sentence in answer.split("."):
            words = sentence.replace(",", " ,").split()
            if len(words) > 4:
                rng.shuffle(words)
                shuffled += 1
                fitting += not form(" ".join(words) + ".", False).malformed
    assert shuffled > 800
    assert fitting < 0.01 * shuffled  # the shuffle that changed nothing


@pytest.mark.parametrize(
    ("said", "cut_off", "expected"),
    [
        ("", False, Form(0, 0)),
        ("Do not knead the dough", True, Form(0, 0)),
        ("Do not knead the dough", False, Form(1, 1)),
        ("Wait, that is not right. Let me start over.", False, Form(0, 2)),
        ("Let me start over. Let me start.", False, Form(1, 2)),
        ("How do I knead the warm dough?", False, Form(1, 1)),
        (".", False, Form(1, 1)),
    ],
)
def test_by_hand(said: str, cut_off: bool, expected: Form):
    assert form(said, cut_off) == expected


def test_questions_of_this_world_are_known():
    assert all(asks(q.text) for q in questions())
    assert not asks("Explain how to bake bread.")
    assert not asks("")
