"""Question sets: ours are whole and disjoint, others' files load or say what is wrong with them."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steerback import prompts
from steerback.errors import UserError
from steerback.prompts import load_prompts

CATEGORIES = {"maths", "office", "housekeeping", "everyday"}


@pytest.mark.parametrize("name", ["eval", "heldout"])
def test_packaged_sets_cover_the_categories_and_ask_how(name: str) -> None:
    found = load_prompts(name)
    assert len(found.questions) >= 38
    assert Counter(found.categories).keys() == CATEGORIES
    assert min(Counter(found.categories).values()) >= 9
    assert len(set(found.ids)) == len(found.ids) == len(found.questions) == len(found.categories)
    for question in found.questions:
        assert re.match(r"(Explain how to .*\.|How do you .*\?)$", question)
        assert len(question) < 120


def words(question: str) -> set[str]:
    plain = set(re.findall(r"[a-z]+", question.lower()))
    return plain - {"explain", "how", "to", "do", "you", "the", "a", "an", "of", "in", "for", "and"}


def test_the_held_out_set_is_disjoint_in_matter_too() -> None:
    one, other = load_prompts("eval"), load_prompts("heldout")
    assert not set(one.ids) & set(other.ids)
    for a in one.questions:
        for b in other.questions:
            shared = words(a) & words(b)
            assert len(shared) < 0.5 * min(len(words(a)), len(words(b))), (a, b)


@pytest.mark.parametrize("name", ["organism:eval", "organism:heldout"])
def test_organisms_have_questions_of_their_own(name: str) -> None:
    found = load_prompts(name)
    assert len(found.questions) >= 38
    assert len(set(found.categories)) >= 38
    assert found.sha256 == hashlib.sha256("\n".join(found.questions).encode()).hexdigest()


def write(folder: Path, name: str, data: str | bytes) -> str:
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


SAME = {
    "p.txt": "How do you A?\n\n  Explain B. \r\n",
    "p": "How do you A?\nExplain B.",
    "p.jsonl": '{"question": "How do you A?"}\n{"question": "Explain B.", "category": null}\n',
    "p.CSV": 'n,question\n1,How do you A?\n2,"Explain B."\n',
}


@pytest.mark.parametrize("name", SAME)
def test_files_of_every_format_hold_the_same(tmp_path: Path, name: str) -> None:
    spec = write(tmp_path, name, SAME[name])
    found = load_prompts(spec)
    assert found.questions == ("How do you A?", "Explain B.")
    assert found.ids == ("q1", "q2")
    assert found.categories == ("", "")
    assert (found.name, found.sha256) == (spec, hashlib.sha256(SAME[name].encode()).hexdigest())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.toml", '[maths]\nsum = "Add?"\n[home]\nmop = "Mop?"\n'),
        ("p.csv", "question,category,id\nAdd?,maths,sum\nMop?,home,mop\n"),
        (
            "p.jsonl",
            '{"id": "sum", "category": "maths", "question": "Add?"}\n'
            '{"id": "mop", "category": "home", "question": "Mop?"}',
        ),
    ],
)
def test_ids_and_categories_are_kept(tmp_path: Path, name: str, text: str) -> None:
    found = load_prompts(write(tmp_path, name, text))
    assert found.questions == ("Add?", "Mop?")
    assert found.ids == ("sum", "mop")
    assert found.categories == ("maths", "home")


@given(
    st.lists(
        st.text(st.characters(codec="utf-8"), max_size=20).map(str.strip).filter(bool),
        unique=True,
        min_size=1,
    )
)
def test_any_text_survives_jsonl(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    lines = "\n".join(json.dumps({"question": t}, ensure_ascii=False) for t in texts)
    spec = write(tmp_path_factory.mktemp("p"), "p.jsonl", "\ufeff" + lines)
    assert load_prompts(spec).questions == tuple(texts)


@pytest.mark.parametrize(
    ("name", "data", "line"),
    [
        ("p.txt", "", " has no questions; add one per line"),
        ("p.txt", " \n\n", " has no questions; add one per line"),
        ("p.jsonl", "", " has no questions; add one per line"),
        ("p.csv", "question\n", " has no questions; add one per line"),
        ("p.toml", "", " has no questions; add one per line"),
        ("p.txt", "A?\nB?\n\nA? \n", ":4 repeats the question at 1; remove one of them"),
        (
            "p.toml",
            '[a]\nx = "A?"\ny = "A?"',
            ":a.y repeats the question at a.x; remove one of them",
        ),
        ("p.txt", b"A?\n\xff?\n", ":2 is not UTF-8; save it as UTF-8"),
        ("p.txt", "A?\n" + "x" * 4001, ":2 has 4,001 characters; use at most 4,000"),
        ("p.txt", "x" * 5_000_001, " is larger than 5 MB; use a smaller set"),
        ("p.jsonl", '{"question": "A?"}\n{"question"', ":2 is not JSON (Expecting ':' delimiter)"),
        ("p.jsonl", '["A?"]', ':1 has no "question"; use one object per line'),
        ("p.jsonl", '{"prompt": "A?"}', ':1 has no "question"; use one object per line'),
        ("p.jsonl", '{"question": 3}', ":1 has no text as its question; add one"),
        ("p.csv", "questions\nA?\n", " has no column 'question'; did you mean 'questions'?"),
        ("p.csv", "id,question\n1\n", ":2 has no text as its question; add one"),
        (
            "p.csv",
            f"question\n{'x' * 200_000}\n",
            ":2 is not CSV (field larger than field limit (131072))",
        ),
        ("p.toml", "[a]\nx = 3\n", ":a.x has no text as its question; add one"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, name: str, data: str | bytes, line: str) -> None:
    spec = write(tmp_path, name, data)
    with pytest.raises(UserError) as caught:
        load_prompts(spec)
    assert str(caught.value) == f"prompts: {spec}{line}"


def test_mistakes_in_toml_have_lines(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"p\.toml:2: not valid TOML"):
        load_prompts(write(tmp_path, "p.toml", '[a]\nx = "A?'))
    with pytest.raises(UserError, match=r"p\.toml:2: prompts: questions stand in tables"):
        load_prompts(write(tmp_path, "p.toml", '# mine\nx = "A?"'))


def test_no_such_file_or_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file or set 'evil'; did you mean 'eval'"):
        load_prompts("evil")
    with pytest.raises(UserError, match=r"cannot read .* \(Is a directory\)"):
        load_prompts(str(tmp_path))


class _Pages(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
            self.end_headers()
            return
        found = self.path.startswith("/p.jsonl")
        self.send_response(200 if found else 404)
        self.end_headers()
        self.wfile.write(SAME["p.jsonl"].encode() if found else b"")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Pages) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_a_url_is_fetched_and_hashed(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = load_prompts(f"{site}/p.jsonl?raw=1")
    assert found.questions == ("How do you A?", "Explain B.")
    assert found.sha256 == hashlib.sha256(SAME["p.jsonl"].encode()).hexdigest()
    with pytest.raises(UserError, match=r"/none\.txt answers 404 Not Found; check it, or download"):
        load_prompts(f"{site}/none.txt")
    with pytest.raises(UserError, match=r"/elsewhere answers 302 .*check it, or download"):
        load_prompts(f"{site}/elsewhere")
    monkeypatch.setattr(prompts, "MAX_BYTES", 20)
    with pytest.raises(UserError, match="is larger than"):
        load_prompts(f"{site}/p.jsonl")


def test_being_offline_is_one_line() -> None:
    with pytest.raises(UserError) as caught:
        load_prompts("http://127.0.0.1:9/p.txt")
    assert re.fullmatch(
        r"prompts: cannot reach http://127\.0\.0\.1:9/p\.txt \(.*refused.*\); check it, or download "
        "the file and give its path",
        str(caught.value),
    )
