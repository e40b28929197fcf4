"""Judges and raters by name, and the labels' concreteness."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest

pytest.importorskip("inspect_ai")

from fake_provider import CURRENT, Faults
from scipy.stats import mannwhitneyu, pearsonr, spearmanr

from steerback.errors import UserError
from steerback.judge.ask import Failed, Question, T
from steerback.judge.base import Request
from steerback.judge.concrete import rate_by_words, rate_labels, read_ratings
from steerback.judge.exact import ExactJudge
from steerback.judge.llm import LlmJudge
from steerback.judge.local import EngineJudge
from steerback.judge.parse import BadAnswer
from steerback.judge.registry import make_judge, make_rater

pytestmark = pytest.mark.filterwarnings("ignore:The 'initial' parameter:DeprecationWarning")

RATED = Path(__file__).parent / "data" / "concreteness.csv"


class Idle:
    name = "idle"

    def generate(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("nothing is to be generated")

    read = generate


def test_names_make_judges(tmp_path: Path) -> None:
    assert isinstance(make_judge("exact"), ExactJudge)
    own = make_judge("self", engine=Idle(), mode="trust")
    assert isinstance(own, EngineJudge)
    assert own.name.startswith("self:idle:trust:")
    assert own.shares_engine
    CURRENT["m"] = Faults(0)
    paid = make_judge("fake/m", cache=tmp_path / "a.sqlite", cap=7, max_tokens=99, timeout=9.0)
    assert isinstance(paid, LlmJudge)
    assert (paid.network.cap.limit, paid.network.address.max_tokens) == (7, 99)
    assert (tmp_path / "a.sqlite").exists()


def test_a_folder_makes_a_local_judge(tmp_path: Path) -> None:
    model: Any = models.build("llama")
    model.save_pretrained(tmp_path)
    models.tokenizer().save_pretrained(tmp_path)
    (tmp_path / "p.md").write_text("{question}{response}")
    spec = f"hf:{tmp_path}"
    local = make_judge(spec, prompt=tmp_path / "p.md", max_tokens=4, device="cpu")
    assert local.name.startswith(f"{spec}:verify:")
    assert isinstance(local, EngineJudge)
    assert not local.shares_engine
    (verdict,) = local.judge([Request("k", "q", "r")])
    assert verdict.status == "error"


@pytest.mark.parametrize(
    ("spec", "context", "line"),
    [
        ("exat", {}, r"unknown judge 'exat'; did you mean 'exact'\? or a model such as hf:"),
        ("gpt-5", {}, "unknown judge 'gpt-5'; known: .*PROVIDER/MODEL"),
        ("hf:", {}, "unknown judge 'hf:'"),
        ("embed:", {}, "unknown judge 'embed:'"),
        ("self", {}, "judge 'self' needs the loaded model"),
        ("embed", {}, "judge 'embed' needs the labels"),
        ("self", {"engine": Idle(), "mode": "trsut"}, "judge mode 'trsut' does not exist"),
        ("self", {"engine": Idle(), "prompt": "no.md"}, r"judge prompt no\.md: cannot be read"),
        ("antropic/x", {}, r"judge antropic/x: .* did you mean 'anthropic'\?"),
        ("fake/m", {"cache": "no/such/folder"}, "judge cache no/such/folder: unable to open"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(spec: str, context: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        make_judge(spec, **context)
    assert "\n" not in str(caught.value)


# Concreteness


class Table:
    """An asker that rates each label by its length and fails on prompts that hold `spoiled`."""

    model = "table"
    settings: dict[str, str | float | None] = {}  # noqa: RUF012

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def ask(self, questions: Sequence[Question[T]]) -> list[T | Failed]:
        self.prompts += [q.prompt for q in questions]
        return [Failed("no") if "spoiled" in q.prompt else q.read(self._say(q)) for q in questions]

    def _say(self, question: Question[Any]) -> str:
        lines = [x.split(". ", 1) for x in question.prompt.splitlines() if x[:1].isdigit()]
        ratings = [{"number": int(n), "score": len(label)} for n, label in lines if n.isdigit()]
        return json.dumps({"ratings": ratings[::-1]})


@pytest.mark.parametrize("n", [0, 1, 3, 17, 65])
def test_labels_are_rated_in_batches_and_a_batch_that_failed_is_none(n: int) -> None:
    labels = ["x" * (i % 100 + 1) for i in range(n)]
    spoiled = [*labels[:-1], "spoiled"] if n > 3 else labels
    table = Table()
    rated = rate_labels(spoiled, table, batch=3)
    assert len(table.prompts) == -(-n // 3)
    failed = (n - 1) // 3 * 3 if n > 3 else n
    assert rated == [*map(float, map(len, labels[:failed])), *[None] * (n - failed)]


@pytest.mark.parametrize(
    ("ratings", "why"),
    [
        ("[1, 2]", "not a list of objects"),
        ('{"1": 2}', "not a list of objects"),
        ('[{"number": 1, "score": 5}]', "not numbered from 1 to 2"),
        ('[{"number": 1, "score": 5}, {"number": 1, "score": 5}]', "not numbered from 1 to 2"),
        (
            '[{"number": 1, "score": 5}, {"number": 2, "score": 500}]',
            "line 2: score 500 is outside",
        ),
        ('[{"number": 1, "score": 5}, {"number": 2}]', "line 2: score None is not a number"),
    ],
)
def test_ratings_that_are_not_one_per_line_are_bad(ratings: str, why: str) -> None:
    with pytest.raises(BadAnswer, match=why):
        read_ratings(f'{{"ratings": {ratings}}}', 2)


def test_words_tell_things_from_ideas_as_a_person_does() -> None:
    rows = list(csv.DictReader(RATED.open(encoding="utf-8")))
    by_hand = np.array([float(r["score"]) for r in rows])
    rated = np.array([rate_by_words(r["label"]) for r in rows])
    assert len(rows) >= 150
    assert pearsonr(by_hand, rated).statistic > 0.88
    assert spearmanr(by_hand, rated).statistic > 0.84
    kept, left = rated[by_hand >= 65], rated[by_hand < 65]
    auc = mannwhitneyu(kept, left).statistic / (len(kept) * len(left))
    assert auc > 0.95
    assert (left >= 65).mean() < 0.05


def test_words_of_the_frame_do_not_count() -> None:
    assert rate_by_words("references to ships") == rate_by_words("ship") == 95
    assert rate_by_words("the concept of justice") == 5
    assert rate_by_words("mentions of or related to") == rate_by_words("") == 50


def test_raters_by_name() -> None:
    assert make_rater("words")(["ships", "justice"]) == [95.0, 5.0]
    CURRENT["m"] = Faults(1, only=("prose",))
    assert make_rater("fake/m")(["ships"]) == [None]
    with pytest.raises(UserError, match="judge 'exact' cannot rate labels; use 'words'"):
        make_rater("exact")
