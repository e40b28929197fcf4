"""A judge's answer is read strictly: damaged in any way, it is either the same or no answer at all."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steerback.judge.locate import Text
from steerback.judge.parse import BadAnswer, Claim, parse_answer

CLAIMS = st.lists(
    st.builds(
        Claim,
        st.text(min_size=1).filter(str.strip),
        st.one_of(st.integers(0, 100), st.floats(0, 100)).map(float),
    ),
    max_size=4,
)


def answer(claims: list[Claim], before: str = "", after: str = "") -> str:
    body = {"attempts": [{"text": c.text, "score": c.score} for c in claims]}
    return before + json.dumps(body) + after


@given(CLAIMS, st.booleans())
def test_what_was_written_is_read(claims: list[Claim], fenced: bool) -> None:
    around = ("It drifts {a bit}.\n```json\n", "\n```\n") if fenced else ("Two [parts]: ", " Done.")
    assert parse_answer(answer(claims, *around)) == claims


@given(CLAIMS, st.data())
@settings(max_examples=100)
def test_an_answer_cut_anywhere_is_whole_or_bad(claims: list[Claim], data: st.DataObject) -> None:
    whole = answer(claims, "It drifts. ")
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(BadAnswer):
        parse_answer(cut)


@given(CLAIMS, st.data())
@settings(max_examples=100)
def test_trailing_commas_change_nothing(claims: list[Claim], data: st.DataObject) -> None:
    body = {"attempts": [{"text": c.text, "score": c.score} for c in claims]}
    strings: list[str] = []

    def keep(m: re.Match[str]) -> str:
        strings.append(m.group())
        return f"\x00{len(strings) - 1}\x00"

    bare = re.sub(r'"(?:\\.|[^"\\])*"', keep, json.dumps(body))
    comma = data.draw(st.sampled_from([",", ", ", ",\n\t"]))
    bare = re.sub(r"(?<=[^\[{])([\]}])", comma.replace("\\", "") + r"\1", bare)
    spoiled = re.sub(r"\x00(\d+)\x00", lambda m: strings[int(m.group(1))], bare)
    assert parse_answer(spoiled) == claims


def test_commas_and_brackets_inside_texts_stay() -> None:
    said = Claim('one,] two,} {"attempts": [] , ]', 4.0)
    assert parse_answer(answer([said])) == [said]


def test_a_draft_inside_the_reasoning_does_not_count() -> None:
    draft, final = [Claim("a b", 10.0)], [Claim("a b", 90.0)]
    assert parse_answer(f"<think>{answer(draft)}</think>{answer(final)}") == final


def test_line_ends_inside_strings_are_taken_as_they_are() -> None:
    assert parse_answer('{"attempts": [{"text": "a\nb", "score": 7}]}') == [Claim("a\nb", 7.0)]


def test_the_same_object_twice_is_one_answer() -> None:
    claims = [Claim("a b", 10.0)]
    assert parse_answer(answer(claims) + "\nSo: " + answer(claims)) == claims


BAD = {
    "empty": ("", "empty"),
    "blank": (" \n", "empty"),
    "only thought": ("<think>so it is</think> ", "empty"),
    "prose": ("The response is fine, 90 of 100.", "is missing"),
    "a bare list": ('[{"text": "a", "score": 3}]', "is missing"),
    "cut": ('{"attempts": [{"text": "a", "score": 3}, {"text": "b', "cut off"),
    "cut after a whole one": ('{"attempts": []} or {"attempts": [{"te', "cut off"),
    "two that differ": ('{"attempts": []} {"attempts": [{"text": "a", "score": 3}]}', "differ"),
    "no list": ('{"attempts": {"text": "a", "score": 3}}', "not a list"),
    "no object": ('{"attempts": ["a"]}', "attempt 1 is not an object"),
    "no text": ('{"attempts": [{"score": 3}]}', "attempt 1 has no text"),
    "blank text": ('{"attempts": [{"text": " ", "score": 3}]}', "attempt 1 has no text"),
    "text a number": ('{"attempts": [{"text": 5, "score": 3}]}', "attempt 1 has no text"),
    "no score": ('{"attempts": [{"text": "a"}]}', "score None is not a number"),
    "150": (
        '{"attempts": [{"text": "a", "score": 1}, {"text": "b", "score": 150}]}',
        "attempt 2: score 150 is outside 0-100",
    ),
    "negative": ('{"attempts": [{"text": "a", "score": -1}]}', "outside 0-100"),
    "high": ('{"attempts": [{"text": "a", "score": "high"}]}', "score 'high' is not a number"),
    "a string": ('{"attempts": [{"text": "a", "score": "85"}]}', "not a number"),
    "true": ('{"attempts": [{"text": "a", "score": true}]}', "not a number"),
    "null": ('{"attempts": [{"text": "a", "score": null}]}', "not a number"),
    "NaN": ('{"attempts": [{"text": "a", "score": NaN}]}', "cut off or broken"),
    "infinity": ('{"attempts": [{"text": "a", "score": 1e999}]}', "outside 0-100"),
    "a key twice": ('{"attempts": [], "attempts": [{"text": "a", "score": 3}]}', "broken"),
    "single quotes": ("{'attempts': []}", "is missing"),
    "a bare word": ('{"attempts": [{"text": "a", "score": high}]}', "cut off or broken"),
    "depth": ('{"attempts": ' + "[" * 100_000, "cut off or broken"),
}


@pytest.mark.parametrize("case", BAD)
def test_anything_else_is_bad_and_says_why(case: str) -> None:
    said, why = BAD[case]
    with pytest.raises(BadAnswer, match=re.escape(why)):
        parse_answer(said)


# Quotations


@given(st.text(alphabet="ab \n'’\"“.", max_size=40), st.data())
@settings(max_examples=100)
def test_an_exact_quotation_is_found_where_python_finds_it(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    quoted = text[start:end].strip()
    if quoted:
        at = text.index(quoted)
        assert Text(text).find(text[start:end]) == (at, at + len(quoted))


@given(st.text(alphabet="ab \n\t'’\"“", max_size=30), st.text(alphabet="ab '\"", max_size=6))
@settings(max_examples=200)
def test_a_levelled_quotation_is_found_as_a_pattern_finds_it(text: str, quoted: str) -> None:
    quoted = " ".join(quoted.split())
    forms = {" ": r"\s+", "'": "['’]", '"': '["“]'}
    pattern = "".join(forms.get(c, c) for c in quoted)
    if quoted and quoted not in text:
        m = re.search(pattern, text)
        assert Text(text).find(quoted) == (m and m.span())


def test_the_place_is_sought_from_the_start_given() -> None:
    text = Text("ab “c” d ab “c” d")
    assert text.find("ab") == (0, 2)
    assert text.find("ab", 1) == (9, 11)
    assert text.find('ab "c"', 1) == (9, 15)
    assert text.find('ab "c"', 10) is None


def test_pieces_around_an_ellipsis_stand_in_order() -> None:
    response = "First we boil the water slowly. Then we add the leaves and wait."
    text = Text(response)
    assert text.find("First we boil ... the leaves and wait.") == (0, len(response))
    assert text.find("First we boil the water…") == (0, 23)
    assert text.find("the leaves and wait ... First we boil") is None
    assert text.find("First ... wait") is None
    assert text.find("...") is None
    assert text.find("First we fry the water") is None
