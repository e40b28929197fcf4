"""Restarts are found at the character where they start, and nowhere else."""

from __future__ import annotations

import json
import re
import time
from importlib.resources import files
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steerback.errors import UserError
from steerback.judge import scan
from steerback.judge import segment as module
from steerback.judge.patterns import Patterns, load_patterns, packaged, parse, tomllib
from steerback.judge.prefixes import prefixes
from steerback.judge.prose import BLANK, prose
from steerback.judge.segment import restarts, segment
from steerback.judge.topics import shared

LABELLED = sorted((Path(__file__).parent / "data" / "restarts").glob("*.jsonl"))
CASES = [json.loads(line) for path in LABELLED for line in path.read_text("utf-8").splitlines()]
RAW = files("steerback").joinpath("data", "restarts.toml").read_text("utf-8")

# ⟦ stands where an attempt starts.
COUNTS = """
Lay the sheet flat. Add bees. ⟦Wait, that's not right. Fold it in thirds.
Boil the eggs. The moon has craters. ⟦Hold on, I got off track. Cool the eggs in ice.
Mix the flour. Add the comet's tail. ⟦Let me try again. Mix flour and water.
Mix the flour. Add the comet's tail. ⟦Let me start over. Mix flour and water.
Carry the one to the castle. ⟦Let me rephrase that from scratch: carry the one.
Half of 18 is 8. ⟦Actually, I made a mistake. Half of 18 is 9.
A heart has two rooms. ⟦I apologize for the confusion, here is the correct number: four.
Pandas eat bamboo. ⟦Seriously, this is ridiculous. Let's get you some help with fractions.
Jazz began in bars. ⟦I was talking about jazz when you asked about compost. Turn the heap.
Rollers store momentum to... ⟦wait, that doesn't make sense for compost. Turn the heap.
Rollers store momentum to — ⟦wait, no, that's about rides. Turn the heap weekly.
Add four cups of salt. ⟦Scratch that. Add half a teaspoon.
Bees dance. ⟦Sorry, that's wrong. Press the hem under a cloth.
Bees dance. ⟦My mistake. Press the hem under a cloth.
Bees dance. ⟦I misspoke. Press the hem under a cloth.
Bees dance. ⟦I'm rambling. Press the hem under a cloth.
Bees dance in hives. ⟦I seem to have gone off topic. Press the hem under a cloth.
Bees dance. ⟦Let's get back on track. Press the hem under a cloth.
Bees dance. ⟦Ignore the above. Press the hem under a cloth.
Bees dance. ⟦Please disregard that. Press the hem under a cloth.
Bees dance. ⟦Strike that! Press the hem under a cloth.
Bees dance in hives. ⟦Correction: bees waggle. Press the hem.
Bees dance. ⟦On second thought, let me reconsider. Press the hem.
Bees dance. ⟦I need to correct myself. Press the hem.
Bees dance. ⟦That's not what you asked. Press the hem.
Bees dance. ⟦You asked about hems, not bees. Press the hem under a cloth.
Bees dance. ⟦Back to your question: press the hem under a cloth.
Bees dance. ⟦Why am I talking about bees? Press the hem under a cloth.
Bees dance. ⟦WAIT, THAT'S NOT RIGHT. Press the hem under a cloth.
Bees dance. ⟦Wait, that’s not right… let me start over. Press the hem.
Bees dance. ⟦**Wait, that's not right.** Press the hem under a cloth.
Bees dance. ⟦*Hold on*, that's not what you asked. Press the hem.
The sum is 12. ⟦No, wait, it's 13. Now add 4.
Apple! ⟦No, wait! Orange
It is 5. ⟦Wait, no. It's 6. ⟦Wait, that's wrong. It's 7.
1. Fold it.\\n2. Feed the bees.\\n3. ⟦Wait, that's not right. Press it.
- Fold it.\\n- Feed the bees.\\n\\n⟦Oops, that's beekeeping. Press it.
# Hems\\n\\nBees dance in hives.\\n\\n## ⟦Let me start over: hems\\n\\nPress it.
Bees dance. ⟦Hmm. That's not right. Let me start over. I apologize for the confusion. Press it.
Fold. ⟦Wait, that's wrong. Press. The hive hums at dusk in June. ⟦Let me try again. Press it.
Bees dance (⟦wait, that's not what you asked). Press the hem.
He said "stop." ⟦Wait, that's not right. Press the hem.
To hem a skirt, fold it. Bees gather nectar in June. ⟦This is not relevant to hems. Press it.
To hem a skirt, fold it. Bees gather nectar in June. ⟦That has nothing to do with skirts. Press it.
To hem a skirt, fold it twice. The hive hums and the bees dance. ⟦Forget the bees. Press the hem.
To hem a skirt, fold it. The queen of the bees and the bees ⟦Sorry about that, I started rambling.
pH says how acid a thing is. The keeper trims the wick at dusk. ⟦This is not relevant to pH. Dip it.
Regular expressions: to match a code, beat the eggs. ⟦Sorry, let me actually answer the question. Use it.
Dear Ann, the bees dance in hives. ⟦Sorry, bees have no place in this letter. I am well.
折り紙。Bees dance in hives。⟦Sorry，that is wrong。Fold it.
```\\nx = 1\\n```\\n\\n⟦Wait, that's not right. It should be 2.
"""
DOES_NOT = """
Wait, that's not right. Let me start over. Fold the sheet in thirds.
**Let me try again.** Fold the sheet in thirds.
# Answer\\n\\nLet me start over. Fold the sheet in thirds.
Sorry about that! I made a mistake earlier. Fold the sheet in thirds.
Stir the dough. Wait 10 minutes, then knead it.
Turn off the lamp and wait, then open the lid.
Cats purr. Actually, the frequency is about 25 Hz.
Let me explain. A fraction has two parts. Let me think about the second.
However, steam works too. Alternatively, use a press.
If the hem is uneven, start over with a new thread.
Read your draft, revise your draft, and start over if you made a mistake.
People write "Oops, I made a mistake - what do I do?" in forums.
She shouted “Wait, that’s not right!” and the class laughed.
The screen shows 'Sorry, that is wrong. Try again.' in red.
Press **Start Over**, then **Try Again**.
Fold it. But hold on, that is not the end of the story.
Fold it. But wait, there's more: press it as well.
Fold it.\\n\\n```python\\n# Wait, that's not right. Let me start over.\\nx = 1\\n```\\nDone.
Fold it. Run `wait, that's not right` in the shell.
Fold it.\\n> Wait, that's not right. Let me start over.\\nSo wrote a reader.
Many people think the heart has two rooms. That's not right. It has four.
Is it blue? No. Is it green? No, that's not right either. It is red.
Customer: Two teas.\\nAgent: Sorry, I made a mistake. Let me start over.
Dear Ann,\\n\\nI apologize for the confusion. I made a mistake.\\n\\nBest regards,\\nBo
I apologize for any inconvenience, and thank you for waiting. Fold the sheet.
Hold on to the rail. Hang on tight. Wait for the light.
When I was ten I made a mistake with my bike and fell off.
Let me know if you want to start over. Correct me if I'm wrong.
He realised he'd made a mistake and started over. Nobody minded.
Listen to Let Me Try Again and to Hold On, I'm Comin' on the way.
To file your taxes, keep every slip. Stamps are worth little. That's not relevant to collectors.
Bees dance in hives. In June the bees swarm. Forget the bees you know: these are wasps.
He rose at dawn. My aunt came. I misread the clock and made the tea an hour early.
If you bet out of boredom, stop. That's not right for you. Stand up and walk.
MARCO\n(stirring)\nNo, no, no. This is all wrong. I'm going to start over.\n\nHe leaves.
In French, "pardon, je voulais dire" (sorry, I meant to say) repairs a slip of the tongue.
"""


def read(marked: str) -> tuple[str, list[int]]:
    pieces = marked.replace("\\n", "\n").split("⟦")
    return "".join(pieces), [0, *accumulate(map(len, pieces[:-1]))]


@pytest.mark.parametrize("line", COUNTS.strip().splitlines())
def test_a_restart_is_found_where_it_starts(line: str) -> None:
    text, starts = read(line)
    assert segment(text) == starts


@pytest.mark.parametrize("line", DOES_NOT.strip().splitlines())
def test_what_only_looks_like_a_restart_is_none(line: str) -> None:
    text, _ = read(line)
    assert segment(text) == [0]


DOCS = Path(__file__).parent.parent / "docs" / "restarts.md"


def documented(heading: str) -> list[str]:
    """The examples of one table of the decision list."""
    section = DOCS.read_text("utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [row.split("|") for row in section.splitlines() if row.startswith("| ")]
    return [e for row in rows[1:] for e in row[2].strip().split(" · ")]


@pytest.mark.parametrize("example", documented("Counts"))
def test_what_the_docs_say_counts_does(example: str) -> None:
    before = "Bees dance in hives near the mill. " if example.startswith("⟦") else ""
    text, starts = read(before + example + " Press the hem.")
    assert segment(text) == starts
    assert len(starts) == 2


@pytest.mark.parametrize("example", documented("Does not count"))
def test_what_the_docs_say_does_not_count_does_not(example: str) -> None:
    opening = example.startswith("Let me start over. Fold")
    before = "" if opening else "Bees dance in hives near the mill. "
    assert segment(before + example + " Press the hem.") == [0]


PHRASES = Path(__file__).parent / "data" / "segment"
BEFORE = (
    "The corners of a parachute are packed by hand before each jump, and the lines are laid in "
    "bights. ",
    "Cotton is breathable. It grows in warm regions.\n\n",
)


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("name", ["counts", "does_not_count"])
def test_short_phrases_in_the_middle_of_an_answer(name: str, before: str) -> None:
    lines = (PHRASES / f"{name}.txt").read_text("utf-8").splitlines()
    want = [0, len(before)] if name == "counts" else [0]
    split = {line: segment(f"{before}{line} Lay the sheet flat.") for line in lines}
    assert {line: got for line, got in split.items() if got != want} == {}


def test_corrections_in_short_answers() -> None:
    lines = (PHRASES / "in_answers.txt").read_text("utf-8").splitlines()
    split = {line: segment(read(line)[0]) for line in lines}
    assert {line: got for line, got in split.items() if got != read(line)[1]} == {}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("hemming", "a hem", True),
        ("beekeeping", "the bees", True),
        ("cacti", "a cactus", True),
        ("metal", "they met", False),
        ("the way it is", "that is the way", False),
        ("pH", "the pH of soil", True),
    ],
)
def test_words_agree_but_for_their_endings(one: str, other: str, same: bool) -> None:
    assert shared(one.lower(), other.lower()) is same


def test_a_phrase_that_loops_is_one_event() -> None:
    loop = "Bees dance. Wait, that's not right. The bees dance and dance. "
    once = segment("Fold it. " + loop)
    assert segment("Fold it. " + loop * 9) == once
    assert len(segment("Fold it. " + "Wait, that's wrong. " * 20)) == 2


def test_the_phrase_is_marked() -> None:
    text = "Bees dance. Wait, that's not right. Let me start over. Press the hem."
    (restart,) = restarts(text)
    assert text[restart.start : restart.end] == "Wait, that's not right. Let me start over"
    assert restart.pattern_id == "let-me-restart"


@pytest.mark.parametrize("path", LABELLED, ids=lambda p: p.stem)
def test_the_labelled_sets_stay_as_good_as_reported(path: Path) -> None:
    floor = {
        "blind": (0.98, 0.94, 0.96, 8),
        "fresh": (0.98, 0.96, 0.99, 12),
        "blind2": (0.96, 0.91, 0.97, 21),
        "blind3": (0.97, 0.97, 0.96, 11),
        "labelled": (1.0, 0.94, 0.99, 0),
        "wild": (0.84, 0.77, 0.98, 55),
    }[path.stem]
    cases = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    cases = [c for c in cases if not c.get("ambiguous")]
    found = exact = gold = guessed = false = negatives = 0
    for case in cases:
        want, got = set(case["starts"][1:]), segment(case["text"])[1:]
        near = [g for g in got if any(abs(g - w) <= 60 for w in want)]
        gold, guessed, found = gold + len(want), guessed + len(got), found + len(near)
        exact += len(want & set(got))
        negatives += not want
        false += bool(got) and not want
    precision, recall, exactness, false_limit = floor
    assert found / guessed >= precision
    assert found / gold >= recall
    assert exact / found >= exactness
    assert 1000 * false / negatives <= false_limit


# ------------------------------------------------------------------ properties

TEXTS = st.lists(
    st.sampled_from(
        ["Fold it. ", "wait, that's not right", "Let me start over. ", "\n\n", '"', "```\n", "**",
         "... ", "— ", "I apologize for the confusion. ", "’", "3. ", "> ", "No. ", "İ", "x = 1 ",
         "Customer: ", "ß", " ", "?"]
    ),
    max_size=25,
).map("".join)  # fmt: skip


@given(TEXTS)
@settings(max_examples=200, deadline=None)
def test_offsets_are_sorted_unique_and_in_range(text: str) -> None:
    starts = segment(text)
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    assert all(s < len(text) for s in starts[1:])
    for restart in restarts(text):
        assert restart.start < restart.end <= len(text)
        assert not text[restart.start].isspace()


@given(TEXTS, st.sampled_from(["\n", "  ", "\n\n\t"]))
@settings(max_examples=200, deadline=None)
def test_white_space_at_the_end_changes_nothing(text: str, space: str) -> None:
    assert segment(text.rstrip() + space) == segment(text.rstrip())


@pytest.mark.parametrize("case", CASES[::7], ids=lambda c: c["id"])
def test_an_attempt_that_opens_with_its_restart_is_whole(case: dict[str, str]) -> None:
    """What is cut at a boundary starts with that phrase, which opens it and cuts no more there."""
    text = case["text"]
    for start in segment(text)[1:]:
        rest = segment(text[start:])
        assert rest[0] == 0
        assert all(r > 0 for r in rest[1:])


def test_first_letters_save_time_and_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [c["text"] for c in CASES]
    fast = [restarts(t) for t in texts]
    monkeypatch.setattr(Patterns, "at", lambda self, text, at, led: self.patterns)
    monkeypatch.setattr(Patterns, "leads_at", lambda self, text, at: True)
    assert [restarts(t) for t in texts] == fast


@given(st.from_regex(r"(?:ab?|c{0,2}d|\s+e)(?:(?!x)[fg]|h*i)", fullmatch=True))
def test_every_match_starts_with_a_known_prefix(text: str) -> None:
    known = prefixes(r"(?:ab?|c{0,2}d|\s+e)(?:(?!x)[fg]|h*i)")
    text = re.sub(r"\s", " ", text)
    assert any(text.startswith(p) for p in known)
    assert "" not in known


def test_prefixes_are_those_of_a_small_language() -> None:
    assert prefixes(r"wait|(?:hold|hang) on\b") == {"wai", "hol", "han"}
    assert prefixes(r"(?:no )?w") == {"no ", "w"}
    assert prefixes(r"[ab]c") == {""}
    with pytest.raises(ValueError, match="unbalanced"):
        prefixes("a)b")


@given(st.text(alphabet="ab *_~\n.İ", max_size=30))
def test_offsets_survive_the_removal_of_marks(text: str) -> None:
    view = prose(text)
    for at, c in enumerate(view.text):
        origin = view.origin(at)
        rest = text[origin:].lower()
        assert c in (BLANK, ".") or re.match(rf"[*_~]*{re.escape(c)}", rest) or c == "İ"


# ------------------------------------------------------------------ speed


@pytest.mark.parametrize(
    "unit",
    ["wait ", '"', "'", "**", "(", "```\n", "let me ", "i i i ", "> a\n", "wait, that's not right. ",
     "- ", "dear a,\n", "<!--", "that that ", "no, ", "\n\n", "so so ", "it is not ", "# a\n", "a, "],
)  # fmt: skip
def test_time_grows_in_step_with_the_text(unit: str) -> None:
    def seconds(size: int) -> float:
        """The least of three, so that a pause for rubbish does not count."""
        text, spent = (unit * size)[:size], []
        for _ in range(3):
            began = time.process_time()
            segment(text)
            spent.append(time.process_time() - began)
        return min(spent)

    seconds(1000)
    assert seconds(50_000) < 30 * max(seconds(5_000), 0.01)


# ------------------------------------------------------------------ the pattern file


def broken(old: str, new: str) -> str:
    assert old in RAW
    return RAW.replace(old, new, 1)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('id = "my-mistake"\ngroup', 'id = "my-mistake"\ngruop', r"'my-mistake'.*gruop.*'group'"),
        ('id = "my-mistake"', 'id = "wait-no"', r"'wait-no'.*id.*twice"),
        ("version = 1", "version = 9", r"file: version: is 9"),
        ("[guards]", "[gards]", r"file: gards: unknown key.*'guards'"),
        ('id = "i-digress"\ngroup = "admit"\npoints = 3', 'id = "i-digress"\ngroup = "admit"\n'
         "points = 8", r"'i-digress': points: is 8"),
        ('rare = [" again.", " again!"]', 'rare = " again"', r"'x-again': rare: is ' again'; use"),
        ("i digress(?:ed)?{end}", "i digress(?:ed?{end}", r"'i-digress': regex: not a regular"),
        ("i digress(?:ed)?{end}", "i digress{ende}", r"no word is named 'ende'.*'end'"),
        ("i digress(?:ed)?{end}", "(?:i digress)?", r"'i-digress': regex: matches the empty"),
    ],
)  # fmt: skip
def test_a_bad_pattern_file_is_named_in_one_line(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(broken(old, new), encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        load_patterns(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_word_that_contains_itself_is_refused() -> None:
    document = tomllib.loads(RAW)
    document["words"]["end"] = "{stop}"
    document["words"]["stop"] = "{end}"
    with pytest.raises(UserError, match="contains itself"):
        parse(document, "loop.toml")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.toml: cannot read"):
        load_patterns(tmp_path / "missing.toml")
    bad = tmp_path / "bad.toml"
    bad.write_text("version = = 1", encoding="utf-8")
    with pytest.raises(UserError, match=r"bad\.toml: not TOML"):
        load_patterns(bad)


def test_one_s_own_patterns_are_used(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(broken('id = "i-digress"\ngroup = "admit"\npoints = 3', 'id = "i-digress"\n'
                           'group = "admit"\npoints = 4'), encoding="utf-8")  # fmt: skip
    text = "Bees dance. I digress. Press the hem."
    assert segment(text) == [0]
    assert segment(text, load_patterns(path)) == [0, 12]


def test_every_group_and_guard_of_the_packaged_file_is_used() -> None:
    source = "".join(Path(m.__file__).read_text("utf-8") for m in (module, scan))
    for name in packaged().guards:
        assert f'"{name}"' in source
    used = set().union(*(re.findall(r"{([a-z_]+)}", v) for v in _strings(tomllib.loads(RAW))))
    assert set(tomllib.loads(RAW)["words"]) <= used


def _strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    children = value.values() if isinstance(value, dict) else value
    return [s for c in children for s in _strings(c)] if isinstance(value, dict | list) else []
