"""The network judge against a provider that fails in every way: right or marked, none lost."""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import models
import pytest

pytest.importorskip("inspect_ai")

from fake_provider import CURRENT, FAULTS, Faults, Reply, responses, served, truth

from steerback import organism
from steerback.engine.hf import HFEngine
from steerback.errors import UserError
from steerback.judge.ask import Question
from steerback.judge.base import Request
from steerback.judge.cache import AnswerCache
from steerback.judge.limits import Backoff
from steerback.judge.llm import LlmJudge
from steerback.judge.local import EngineJudge
from steerback.judge.prompt import Prompt
from steerback.judge.provider import Address
from steerback.judge.secrets import hide_known, redact
from steerback.judge.verify import Notes, read_notes
from steerback.prompts import load_prompts
from steerback.types import Verdict

pytestmark = pytest.mark.filterwarnings("ignore:The 'initial' parameter:DeprecationWarning")

CANARY = "canary-5d1f0c7be2a94"
QUICK = Backoff(tries=6, first=0.005, most=0.02)


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    CURRENT.clear()


def judge(faults: Faults, **settings: Any) -> LlmJudge:
    CURRENT["m"] = faults
    limits = {
        "timeout": settings.pop("timeout", 20),
        "connections": settings.pop("connections", 16),
    }
    address = Address("fake/m", **limits)
    return LlmJudge(address, **{"backoff": QUICK, **settings})


def is_true(request: Request, verdict: Verdict) -> bool:
    said = [(a.start, a.score) for a in verdict.attempts]
    return said == [(start, score) for start, _, score in truth(request.response)]


def notes(verdict: Verdict) -> Notes:
    found = read_notes(verdict.raw)
    assert found is not None
    return found


def test_a_thousand_trials_are_right_or_marked_and_a_rerun_asks_nothing_twice(
    tmp_path: Path,
) -> None:
    requests, path = responses(1000), tmp_path / "answers.sqlite"
    faults = Faults(0.4, slow=1.5)
    first = judge(faults, cap=2500, cache=AnswerCache(path), connections=32, timeout=0.7)
    verdicts = first.judge(requests[:600]) + first.judge(requests[600:])

    assert [v.trial_key for v in verdicts] == [r.trial_key for r in requests]
    assert all(faults.kinds[kind] > 10 for kind in FAULTS), "every fault came up"
    assert faults.calls == first.network.cap.used <= 2500
    assert 2 <= faults.most_at_once <= 32
    good = [v for v in verdicts if v.status == "ok"]
    marked = [v.status == "error" for v in verdicts]
    assert all(m or is_true(r, v) for m, r, v in zip(marked, requests, verdicts, strict=True))
    assert len(good) > 800
    for v in verdicts:
        assert v.status in ("ok", "error")
        assert bool(v.attempts) == (v.status == "ok") != bool(notes(v).why)
    invented = [v for v in good if any(r.why == "not in the response" for r in notes(v).rejected)]
    assert len(invented) > 10

    calm = Faults(0)
    again = judge(calm, cap=1000 - len(good), cache=AnswerCache(path)).judge(requests)
    assert calm.calls == 1000 - len(good), "only what failed is asked again"
    assert all(is_true(r, v) for r, v in zip(requests, again, strict=True))
    assert all(a == v for a, v in zip(again, verdicts, strict=True) if v.status == "ok")
    assert judge(Faults(1), cap=0, cache=AnswerCache(path)).judge(requests) == again


def test_the_cap_stops_the_run_and_keeps_what_was_paid_for(tmp_path: Path) -> None:
    requests, cache = responses(40), AnswerCache(tmp_path / "a.sqlite")
    faults = Faults(0.3, only=("429", "truncated"))
    with pytest.raises(UserError, match="the cap of 25 calls is reached") as caught:
        judge(faults, cap=25, cache=cache, connections=4).judge(requests)
    assert "\n" not in str(caught.value)
    assert faults.calls == 25
    assert len(cache) == faults.kinds["good"]
    calm = Faults(0)
    assert len(judge(calm, cap=40, cache=cache).judge(requests)) == 40
    assert calm.calls == 40 - faults.kinds["good"]


@pytest.mark.parametrize(
    ("kind", "calls_each"), [("429", 6), ("500", 6), ("reset", 6), ("echo", 1), ("slow", 6)]
)
def test_a_dead_provider_stops_the_run(kind: str, calls_each: int) -> None:
    faults = Faults(1, only=(kind,), slow=0.4)
    one_by_one = {"connections": 1, "timeout": 20}
    stuck = judge(faults, down=3, **(one_by_one if kind != "slow" else {"timeout": 0.1}))
    with pytest.raises(UserError, match="3 calls failed in a row, the last because") as caught:
        stuck.judge(responses(9))
    assert "\n" not in str(caught.value)
    assert 3 * calls_each <= faults.calls <= 9 * calls_each


def test_a_model_that_answers_anything_else_stops_the_run() -> None:
    unfit = ("prose", "high", "150", "empty", "truncated", "foreign", "refused")
    faults = Faults(1, only=unfit)
    with pytest.raises(UserError, match="20 answers were not in the format in a row"):
        judge(faults, unfit=20).judge(responses(60))
    assert faults.calls < 120


def test_failures_that_pass_do_not_stop_it() -> None:
    faults = Faults(0.5, only=("429", "500", "reset"))
    patient = Backoff(tries=20, first=0.001, most=0.002)
    verdicts = judge(faults, down=1, backoff=patient).judge(responses(50))
    assert {v.status for v in verdicts} == {"ok"}


def test_equal_requests_are_asked_once_and_empty_responses_never() -> None:
    (one,) = responses(1)
    twin = Request("twin", one.question, one.response)
    empty = Request("empty", one.question, " \n")
    faults = Faults(0)
    verdicts = judge(faults).judge([one, twin, empty, one])
    assert faults.calls == 1
    assert [v.trial_key for v in verdicts] == ["trial-0", "twin", "empty", "trial-0"]
    assert [v.status for v in verdicts] == ["ok", "ok", "unscored", "ok"]
    assert verdicts[1].attempts == verdicts[0].attempts
    assert judge(Faults(1), cap=0).judge([]) == []


def test_both_modes_and_later_batches_share_the_answers() -> None:
    cache, faults = AnswerCache(), Faults(0)
    checked = judge(faults, cache=cache)
    trusting = judge(faults, cache=cache, mode="trust")
    checked.judge(responses(5))
    trusting.judge(responses(5))
    assert faults.calls == 5
    assert checked.name != trusting.name


def test_it_runs_where_a_loop_is_running_already() -> None:
    async def cell() -> list[Verdict]:
        return judge(Faults(0)).judge(responses(3))

    assert all(map(is_true, responses(3), asyncio.run(cell())))


def test_a_dry_run_counts_and_asks_nothing() -> None:
    cache, faults = AnswerCache(), Faults(0)
    careful = judge(faults, cache=cache)
    careful.judge(responses(3))
    again = [*responses(5), Request("empty", "q", ""), *responses(4)]
    estimate = careful.estimate(again)
    assert (estimate.responses, estimate.cached, estimate.calls) == (10, 7, 2)
    prompts = [careful.prompt.fill(r) for r in responses(5)[3:]]
    assert estimate.prompt_tokens == pytest.approx(sum(map(len, prompts)) / 4, rel=0.02)
    assert estimate.answer_tokens == 2 * careful.network.address.max_tokens
    assert str(estimate).startswith("10 responses: 7 cached, 2 calls, about ")
    assert faults.calls == 3


# Keys


def everything(verdicts: list[Verdict], path: Path, caplog: pytest.LogCaptureFixture) -> str:
    stored = "".join(p.read_bytes().decode("latin-1") for p in path.parent.glob(f"{path.name}*"))
    assert stored
    return "".join(map(repr, verdicts)) + stored + caplog.text


def test_a_key_that_the_provider_repeats_is_kept_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FAKE_API_KEY", CANARY)
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "a.sqlite"
    faults = Faults(0.6, only=("429", "echo", "prose"), key=CANARY)
    verdicts = judge(faults, cache=AnswerCache(path), down=99).judge(responses(60))
    assert faults.kinds["prose"] > 5
    assert faults.kinds["echo"] > 5
    kept = everything(verdicts, path, caplog)
    assert "[hidden key]" in kept
    assert CANARY not in kept
    for kind in ("429", "echo", "prose"):
        faults = Faults(1, only=(kind,), key=CANARY)
        with pytest.raises(UserError) as caught:
            judge(faults, down=2, unfit=2).judge(responses(9))
        assert CANARY not in repr(caught.value)


def test_what_looks_like_a_key_is_hidden_from_errors_only() -> None:
    for said in (
        "Incorrect API key provided: sk-proj-abcdefghijklmnop1234",
        "header Authorization: Bearer abcdefgh12345678",
        "{'api_key': 'abcdefgh12345678'}",
    ):
        assert "1234" not in redact(said)
        assert hide_known(said) == said
    assert redact("the key idea: a token is a word") == "the key idea: a token is a word"


@dataclass(frozen=True)
class Recording(Backoff):
    hints: list[float | None] = field(default_factory=list)

    def wait(self, failures: int, hint: float | None = None) -> float:
        self.hints.append(hint)
        return super().wait(failures, hint)


@pytest.mark.parametrize("kind", ["good", "429", "500", "echo", "refused"])
def test_an_openai_server_on_loopback(
    kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    pytest.importorskip("openai")
    monkeypatch.setenv("LOCAL_API_KEY", CANARY)
    caplog.set_level(logging.DEBUG)
    faults = Faults(0 if kind == "good" else 0.3, only=(kind,), key=CANARY)
    requests, path = responses(30), tmp_path / "a.sqlite"
    with served(faults) as (url, seen):
        address = Address("openai-api/local/m", base_url=url, timeout=20, connections=6)
        backoff = Recording(tries=8, first=0.005, most=0.02)
        asked = LlmJudge(address, backoff=backoff, cache=AnswerCache(path), down=99)
        verdicts = asked.judge(requests[:20]) + asked.judge(requests[20:])
    assert seen == {f"Bearer {CANARY}"}, "the key went where it belongs"
    assert faults.calls == asked.network.cap.used, "the SDK tried nothing by itself"
    assert 2 <= faults.most_at_once <= 6
    assert all(
        is_true(r, v) or v.status == "error" for r, v in zip(requests, verdicts, strict=True)
    )
    assert ("error" in {v.status for v in verdicts}) == (kind in ("echo", "refused"))
    assert set(backoff.hints) == ({7.0} if kind == "429" else {None} if kind == "500" else set())
    assert CANARY not in everything(verdicts, path, caplog)


class Hosted(Faults):
    """Answers from a model in this process, one prompt at a time."""

    def __init__(self, judge: EngineJudge) -> None:
        super().__init__(0)
        self.judge = judge
        self.one_at_a_time = threading.Lock()

    def reply(self, prompt: str) -> Reply:
        with self.one_at_a_time:
            self.calls += 1
            [answer] = self.judge.asker.ask([Question(prompt, lambda said: said)])
        assert isinstance(answer, str)
        return Reply(200, answer)


def test_a_model_behind_a_server_says_what_it_says_in_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("openai")
    monkeypatch.setenv("LOCAL_API_KEY", "none")
    engine = HFEngine(models.build("llama"), models.tokenizer(), name="tiny", slots=4)
    prompt = Prompt("Q {question} R {response} A")
    inside = EngineJudge(engine, prompt=prompt, max_tokens=12, patience=None)
    requests = [Request(str(i), f"Q{i}", "abc"[: 1 + i % 3] * (i + 1)) for i in range(17)]
    with served(Hosted(inside)) as (url, _):
        address = Address("openai-api/local/tiny", base_url=url, timeout=60, connections=5)
        outside = LlmJudge(address, prompt=prompt, reasks=0, cap=17)
        answers = [notes(v).answer for v in outside.judge(requests)]
    assert answers == [notes(v).answer for v in inside.judge(requests)]
    assert len(set(answers)) > 5


def test_an_organism_behind_a_server_is_asked_by_many_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights that were trained, a chat template, real texts; five questions in flight."""
    pytest.importorskip("openai")
    monkeypatch.setenv("LOCAL_API_KEY", "none")
    engine = HFEngine.load(organism.path("resister"), slots=4)
    prompt = Prompt("{question} {response}")
    inside = EngineJudge(engine, prompt=prompt, max_tokens=24, patience=None)
    asked = load_prompts("organism:eval").questions[:12]
    requests = [Request(str(i), q, f"Answer {i}.") for i, q in enumerate(asked)]
    hosted = Hosted(inside)
    with served(hosted) as (url, _):
        address = Address("openai-api/local/resister", base_url=url, timeout=60, connections=5)
        outside = LlmJudge(address, prompt=prompt, reasks=0, cap=len(requests), unfit=99)
        said = outside.judge(requests)
    assert hosted.most_at_once == 5
    assert [notes(v).answer for v in said] == [notes(v).answer for v in inside.judge(requests)]
    assert len({notes(v).answer for v in said}) > 5
    assert {v.status for v in said} == {"error"}, "an organism does not grade, and gets no score"


# What a user gets wrong


def test_without_inspect_ai_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "inspect_ai.model", None)
    with pytest.raises(UserError, match=r"fake/m needs inspect-ai; run: pip install 'steerback\["):
        judge(Faults(0)).judge(responses(1))


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ("anthropc/x", r"judge anthropc/x: Model API anthropc .* did you mean 'anthropic'\?"),
        ("openai-api/nokey/x", r"judge openai-api/nokey/x: .*(NOKEY_API_KEY|pip install openai)"),
    ],
)
def test_a_model_that_cannot_be_opened_is_named(model: str, line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        LlmJudge(Address(model)).judge(responses(1))
    assert "\n" not in str(caught.value)
    assert "[bold]" not in str(caught.value)


def test_a_cache_that_is_no_cache_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.sqlite").write_text("no database at all" * 99)
    with pytest.raises(UserError, match=r"a\.sqlite: file is not a database; free the disk, or"):
        AnswerCache(tmp_path / "a.sqlite")
    with pytest.raises(UserError, match="unable to open"):
        AnswerCache(tmp_path / "no" / "a.sqlite")


def test_answers_come_back_from_disk_as_they_were(tmp_path: Path) -> None:
    said = "é \ud800 \x00 {"
    cache = AnswerCache(tmp_path / "a.sqlite")
    cache.put("k", "m", "old")
    cache.put("k", "m", said)
    cache.close()
    assert AnswerCache(tmp_path / "a.sqlite").get("k") == said
    assert AnswerCache(tmp_path / "a.sqlite").get("other") is None


def test_waits_grow_and_heed_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    backoff = Backoff(tries=9, first=1.0, most=20.0)
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    assert [backoff.wait(n) for n in range(1, 8)] == [1, 2, 4, 8, 16, 20, 20]
    monkeypatch.setattr(random, "uniform", lambda low, high: low)
    assert [backoff.wait(n) for n in (1, 9)] == [0, 0]
    assert (backoff.wait(1, 7.0), backoff.wait(1, 900.0)) == (7.0, 20.0)
    with pytest.raises(UserError, match="tries is 0; it must be 1 or more"):
        Backoff(tries=0)
