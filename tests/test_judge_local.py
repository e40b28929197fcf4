"""Judging through the engine: scripted engines for verdicts, a real one for batches."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import models
import pytest

from steerback.engine.hf import HFEngine
from steerback.engine.slots import Job
from steerback.errors import UserError
from steerback.judge.base import Request
from steerback.judge.local import EngineJudge
from steerback.judge.prompt import Prompt, estimate_tokens
from steerback.judge.verify import read_notes
from steerback.types import Generation, Intervention, Sampling, Trial

TINY = Prompt("Q {question} R {response} A")


class Scripted:
    """An engine that answers from a table and finishes the last trial first."""

    name = "scripted"

    def __init__(self, answers: dict[str, str], reason: Any = "eos") -> None:
        self.answers, self.reason = answers, reason
        self.seen: list[list[Trial]] = []

    def generate(self, trials: Iterable[Trial], **_: object) -> Iterator[Generation]:
        self.seen.append(list(trials))
        for t in reversed(self.seen[-1]):
            text = next(a for r, a in self.answers.items() if r in t.messages[0].content)
            yield Generation(t.key, (1,), (2,), text, self.reason)

    def read(self, *_: object, **__: object) -> list[Any]:
        raise AssertionError("a judge reads no activations")


def said(text: str, score: float) -> str:
    return json.dumps({"attempts": [{"text": text, "score": score}]})


def test_each_request_has_its_own_verdict_in_order() -> None:
    engine = Scripted({"flour": said("Use flour", 90), "sails": said("Hoist", 5), "beep": "beep"})
    requests = [
        Request("a", "Bread?", "Use flour."),
        Request("b", "Bread?", "Hoist the sails."),
        Request("a", "Bread?", "beep"),
        Request("c", "Bread?", " \n"),
        Request("d", "Bread?", "Use flour."),
    ]
    judge = EngineJudge(engine)
    verdicts = judge.judge(requests)
    assert [(v.trial_key, v.status, v.scores) for v in verdicts] == [
        ("a", "ok", (90.0,)),
        ("b", "ok", (5.0,)),
        ("a", "error", ()),
        ("c", "unscored", ()),
        ("d", "ok", (90.0,)),
    ]
    assert {v.judge for v in verdicts} == {judge.name}
    (batch,) = engine.seen
    assert len(batch) == 3, "one batch, equal questions asked once"
    assert all(t.interventions == () and t.sampling.temperature == 0 for t in batch)


def test_an_answer_cut_at_the_token_limit_says_so() -> None:
    engine = Scripted({"flour": '{"attempts": [{"text": "Use'}, reason="length")
    (verdict,) = EngineJudge(engine).judge([Request("a", "Bread?", "Use flour.")])
    notes = read_notes(verdict.raw)
    assert notes is not None
    assert "cut off at the token limit" in notes.why
    assert notes.answer == '{"attempts": [{"text": "Use'


def test_a_model_that_cannot_judge_stops_the_run() -> None:
    requests = [Request(str(n), "Bread?", f"Use flour {n}.") for n in range(7)]
    judge = EngineJudge(Scripted({"flour": "Sure!"}), patience=7)
    with pytest.raises(UserError, match="7 answers were not in the format in a row") as caught:
        judge.judge(requests)
    assert "\n" not in str(caught.value)
    assert len(EngineJudge(Scripted({"flour": "Sure!"}), patience=8).judge(requests)) == 7
    assert len(EngineJudge(Scripted({"flour": "Sure!"}), patience=None).judge(requests)) == 7


def test_the_name_tells_settings_apart() -> None:
    engine = Scripted({})
    same = EngineJudge(engine).name
    assert same == EngineJudge(engine).name
    assert same.startswith("self:scripted:verify:")
    others = {
        EngineJudge(engine, mode="trust").name,
        EngineJudge(engine, prompt=TINY).name,
        EngineJudge(engine, max_tokens=99).name,
        EngineJudge(engine, temperature=0.1).name,
        EngineJudge(engine, label="hf:scripted").name,
    }
    assert len(others) == 5
    assert same not in others


@pytest.mark.parametrize("n", [1, 3, 17])
def test_a_batch_says_what_one_call_at_a_time_says(n: int) -> None:
    requests = [Request(str(i), f"Q{i % 5}", f"Response {i} " + "x" * i) for i in range(n)]
    engine = HFEngine(models.build("llama"), models.tokenizer(), name="tiny", slots=8)
    judge = EngineJudge(engine, prompt=TINY, max_tokens=6, patience=None)
    together = judge.judge(requests)
    assert together == [judge.judge([r])[0] for r in requests]
    assert all(v.status == "error" for v in together)


LONG = Prompt("Grade what comes next, and be severe about it. " * 3 + "Q {question} R {response} A")


@pytest.mark.parametrize("backend", ["fused", "transformers"])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "qwen3"])
def test_instructions_are_read_once_and_say_the_same(
    kind: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = HFEngine(models.build(kind), models.tokenizer(), name="tiny", slots=8, backend=backend)
    requests = [Request(str(i), f"Q{i % 5}", f"Response {i} " + "x" * i) for i in range(17)]
    judge = EngineJudge(engine, prompt=LONG, max_tokens=6, patience=None)
    read = _tokens_read(engine, monkeypatch)
    together = judge.judge(requests)
    shared = sum(read)
    assert together == [judge.judge([r])[0] for r in requests]
    read.clear()
    engine.generate = partial(_without_opening, engine.generate)  # type: ignore[method-assign]
    assert judge.judge(requests) == together
    assert shared < sum(read) / 2


def _tokens_read(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each prefill from now on, padding included."""
    read: list[int] = []
    prefill = engine.backend.prefill

    def counted(cache: Any, ids: Any, *rest: Any) -> Any:
        read.append(ids.numel())
        return prefill(cache, ids, *rest)

    monkeypatch.setattr(engine.backend, "prefill", counted)
    return read


def _without_opening(generate: Any, trials: Any, **kwargs: Any) -> Any:
    return generate(trials, **{**kwargs, "opening": ""})


def test_a_prompt_that_only_seems_to_begin_alike_is_read_whole() -> None:
    opening = list(range(70))
    plain = Trial("t", "", "tiny", "q", (), Sampling(), 0)
    job = Job(plain, 0, list(range(80)), 4)
    assert job.begins(opening)
    assert not job.begins([])
    assert not job.begins(list(range(76)))
    assert not job.begins([1, *range(1, 70)])
    for positions, free in (("generated", True), ("from:3", True), ("all", False)):
        edit = Intervention("add", "sae", 0, 1.0, 1, positions=positions)
        assert replace(job, trial=replace(plain, interventions=(edit,))).begins(opening) is free


# The prompt


def test_braces_in_question_and_response_are_left_alone() -> None:
    prompt = Prompt("a {question} {x} {response} {question}")
    filled = prompt.fill(Request("k", "{response}", "{question}{}"))
    assert filled == "a {response} {x} {question}{} {response}"


def test_the_packaged_prompt_has_both_places_and_an_example_that_is_json() -> None:
    prompt = Prompt.load()
    example = next(line for line in prompt.template.splitlines() if line.startswith('{"attempts"'))
    assert json.loads(example)["attempts"][0].keys() == {"text", "score"}
    assert estimate_tokens(prompt.template) < 1000


@pytest.mark.parametrize("place", ["question", "response"])
def test_a_prompt_file_without_a_place_is_refused(tmp_path: Any, place: str) -> None:
    path = tmp_path / "p.md"
    path.write_text("{question} {response}".replace(f"{{{place}}}", ""))
    with pytest.raises(UserError, match=rf"p\.md: \{{{place}\}} is missing; put it"):
        Prompt.load(path)


def test_a_prompt_file_that_cannot_be_read_is_named(tmp_path: Any) -> None:
    with pytest.raises(UserError, match=r"none\.md: cannot be read \(No such file"):
        Prompt.load(tmp_path / "none.md")
    (tmp_path / "b.md").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"b\.md: cannot be read \(not UTF-8\)"):
        Prompt.load(tmp_path / "b.md")


def test_another_file_is_another_prompt(tmp_path: Any) -> None:
    (tmp_path / "p.md").write_text("{question} {response}")
    assert Prompt.load(tmp_path / "p.md").hash != Prompt.load().hash
    assert estimate_tokens("") == 0
    assert estimate_tokens("12345") == 2
    assert estimate_tokens("é\ud800") == 2
