"""Rows that a model writes, and rows of a model's own steered text."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fake_provider import Faults, Reply, served

from steerback import organism
from steerback.cli import main
from steerback.engine.hf import HFEngine
from steerback.errors import UserError
from steerback.finetune import gather, overlap, own, pushes, rows, settings, sources, work, writer
from steerback.judge.base import Request
from steerback.judge.exact import ExactJudge
from steerback.presets import from_preset
from steerback.sae import load_sae
from steerback.types import Sampling

QUESTIONS = [f"How do you {what}?" for what in ("tie a bow", "boil rice", "wax skis", "prune figs")]


class Scribe(Faults):
    """Writes what it is asked for; every fifth answer is cut off, every seventh does not say sorry."""

    def __init__(self) -> None:
        super().__init__(0)
        self.prompts: list[str] = []

    def reply(self, prompt: str) -> Reply:
        self.calls += 1
        self.prompts.append(prompt)
        n = len(self.prompts)
        question = prompt.split("<question>\n")[1].split("\n</question>")[0]
        about = re.search(r"2 to 4 sentences about (.+?)\. They", prompt)
        own = " ".join(f"word{n}x{k}" for k in range(12))
        answer = {"answer": f"{question} Step {n} is {own}. Then rest."}
        if about:
            sorry = "Next." if n % 7 == 0 else "Wait, that is off topic. Let me start over."
            drift = f"Let me tell you of {about[1]}. It is long."
            answer = {"off_topic": drift, "acknowledgement": sorry, **answer}
        said = "Here it is.\n" + json.dumps(answer)
        return Reply(200, said[:40] if n % 5 == 0 else said)


def test_a_provider_writes_rows_with_exact_spans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openai")
    monkeypatch.setenv("LOCAL_API_KEY", "none")
    asked = tmp_path / "questions.txt"
    asked.write_text("\n".join(QUESTIONS), "utf-8")
    to = tmp_path / "rows.jsonl"
    command = ["finetune", "data", "--writer", "openai-api/local/m", "--questions", str(asked)]
    scribe = Scribe()
    with served(scribe) as (url, _):
        main([*command, str(to), "--count", "40", "--base-url", url, "--calls", "99"])
        made = rows.read(to)
        calls = scribe.calls
        # what was paid for is kept; only what was cut off is asked for again
        to.unlink()
        main([*command, str(to), "--count", "40", "--base-url", url])
        assert {r.text for r in made} <= {r.text for r in rows.read(to)}
        assert scribe.calls - calls <= 40 / 5
    said = capsys.readouterr().out
    assert "acknowledgements that no judge would take for a restart" in said
    assert 20 <= len(made) <= 38
    packaged = writer.packaged().subjects
    for row in made:
        assert row.question in QUESTIONS
        assert row.part("answer").startswith(row.question)
        if row.correction:
            assert row.subject in packaged
            assert row.subject in row.part("off_topic")
            assert row.part("acknowledgement") == "Wait, that is off topic. Let me start over."
    assert len({r.subject for r in made if r.correction}) > 8


def test_packaged_subjects_are_many_and_acknowledgements_read_as_restarts() -> None:
    known = writer.packaged()
    assert len(set(known.subjects)) == len(known.subjects) >= 50
    for said in known.acknowledgements:
        row = rows.correction("Why is that?", "Ducks like ponds and reeds.", said, "It rains.")
        assert gather.fit([row]).rows == [row], said


def test_what_the_writer_lacks_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--questions"):
        sources.gathered(sources.Wanted(writer="openai/gpt-4.1"))
    with pytest.raises(UserError, match="cannot write"):
        writer.asker("exact", tmp_path / "a.sqlite")
    with pytest.raises(UserError, match="'heldout'"):
        sources.gathered(sources.Wanted(writer="openai/gpt-4.1", questions="heldout"))
    empty = tmp_path / "subjects.txt"
    empty.write_text("\n", "utf-8")
    with pytest.raises(UserError, match="names no subject"):
        writer.subjects(empty)


@pytest.fixture(scope="module")
def spoken() -> tuple[own.Speech, list[rows.Row]]:
    sae = load_sae(organism.sae_path("naive"), name="sae")
    engine = HFEngine.load(organism.path("naive"), name="naive", sources={"sae": sae})
    asked = [q.text for q in organism.questions("train")]
    engine.measure_norm(1, asked[:32])
    labels = [x for x in organism.labels("naive") if x.concreteness == 100]
    directions = tuple(pushes.Candidate(x.index, x.label) for x in labels[:20])
    sampling = Sampling(repetition_penalty=1.1, max_new_tokens=64)
    speech = own.Speech(engine, ExactJudge(), sampling, directions, 1, (0.8, 1.6))
    made, failed = own.write(speech, asked, 80, 0.7)
    assert len(made) + sum(failed.values()) == 80
    return speech, made


def test_a_models_own_text_is_off_topic_under_the_push_that_the_row_names(
    spoken: tuple[own.Speech, list[rows.Row]],
) -> None:
    speech, made = spoken
    corrections = [r for r in gather.fit(made).rows if r.correction]
    assert len(corrections) >= 8
    judge, labels = ExactJudge(), {c.index: c.label for c in speech.directions}
    for row in corrections:
        assert row.push is not None
        assert row.subject == labels[row.push.index]
        assert 0.8 <= row.push.value <= 1.6
        off, on = (
            judge.judge([Request("", row.question, row.part(p))])[0].attempts[0].score
            for p in ("off_topic", "answer")
        )
        assert on is not None
        assert off is not None
        assert on >= own.ON_TOPIC > own.OFF_TOPIC >= off
    overlap.refuse_shared([r.question for r in made], overlap.evaluation_questions())


def test_rows_are_trained_on_under_the_push_that_they_were_written_under(
    spoken: tuple[own.Speech, list[rows.Row]], tmp_path: Path
) -> None:
    _, made = spoken
    rows.write(made, tmp_path / "rows.jsonl")
    steering = {"directions": "row"}
    made_with = settings.load("organism", {"steering": steering, "validation": 0.0})
    base = from_preset("organism-naive")
    record = work.train(work.Job(base, tmp_path / "rows.jsonl", tmp_path / "t", made_with))
    used = {r.push.index for r in made if r.push}
    assert set(record["steering"]["indices"]) == used
    labels = {x.index: x.label for x in organism.labels("naive")}
    held_out = record["steering"]["held_out"]
    assert held_out
    assert {labels[k] for k in held_out}.isdisjoint(labels[k] for k in used)
    live = pushes.Pushes(made_with.steering, "sae", [pushes.Candidate(0, "")], [1], 0)
    row = next(r for r in made if r.push)
    assert live.draw(row, 0, 0) == (row.push,)
    plain = [r for r in made if not r.correction]
    rows.write(plain, tmp_path / "plain.jsonl")
    with pytest.raises(UserError, match="no row says under which push"):
        work.train(work.Job(base, tmp_path / "plain.jsonl", tmp_path / "p", made_with))
