"""Training rows: spans that are exact, or an error that names the row; a mask right to the token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from models import NO_SYSTEM, TEMPLATE, tokenizer

from steerback import organism
from steerback.chat import encode_prompt
from steerback.dry.model import byte_tokenizer
from steerback.errors import UserError
from steerback.finetune import gather, organisms, overlap, rows
from steerback.finetune.encoding import Encoder, sentence_starts, token_mask
from steerback.finetune.rows import Row, correction, ordinary
from steerback.organism.vocabulary import CHAT_TEMPLATE
from steerback.prompts import load_prompts
from steerback.types import Message

OFF, ANSWER = "Ducks like ponds. They swim – ünhurried.", "Fold it 😀."
ACK = "Wait, that’s wrong. Let me start over."
ROW = correction("How do I fold a map?", OFF, ACK, ANSWER, subject="ducks")


def bad(tmp_path: Path, **changes: object) -> str:
    """The error that reading a good row and then this one raises."""
    record = {**ROW.record(), **changes}
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(ROW.record()) + "\n" + json.dumps(record) + "\n", "utf-8")
    with pytest.raises(UserError) as raised:
        rows.read(file)
    message = str(raised.value)
    assert message.startswith(f"{file}:2: ")
    assert "\n" not in message
    return message


def test_a_row_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    plain = ordinary("Why?", "Because.")
    rows.write([ROW, plain], tmp_path / "rows.jsonl")
    assert rows.read(tmp_path / "rows.jsonl") == [ROW, plain]
    assert [ROW.part(p) for p in rows.PARTS[1:]] == [OFF, ACK, ANSWER]
    assert ROW.response == f"{OFF} {ACK} {ANSWER}"
    assert ROW.clean().response == ANSWER


def test_overlapping_missing_and_loose_spans_are_errors_that_name_the_row(tmp_path: Path) -> None:
    spans = ROW.record()["spans"]
    start = spans["acknowledgement"][0]
    assert "inside 'off_topic'" in bad(
        tmp_path, spans={**spans, "acknowledgement": [start - 3, spans["acknowledgement"][1]]}
    )
    missing = {k: v for k, v in spans.items() if k != "acknowledgement"}
    assert "'acknowledgement' is missing" in bad(tmp_path, spans=missing)
    assert "belongs to no span" in bad(
        tmp_path, spans={**spans, "acknowledgement": [start + 5, spans["acknowledgement"][1]]}
    )
    assert "empty or outside" in bad(tmp_path, spans={**spans, "answer": [spans["answer"][0], 999]})
    assert "unknown span 'reply'" in bad(tmp_path, spans={**spans, "reply": [0, 1]})
    assert "white space" in bad(
        tmp_path, spans={**spans, "answer": [spans["answer"][0] - 1, spans["answer"][1]]}
    )
    assert '"spans"' in bad(tmp_path, spans={"prompt": [0.5, 1]})


KNOWN = {
    "plain": tokenizer(TEMPLATE),
    "no system": tokenizer(NO_SYSTEM),
    "organism": tokenizer(CHAT_TEMPLATE),
    "llama": byte_tokenizer("llama"),
    "gemma": byte_tokenizer("gemma2"),
}
ENDS = ("<|end|>", "<|end|>", "<eos>", "<|eot_id|>", "<end_of_turn>")


@pytest.mark.parametrize(("kind", "end"), list(zip(KNOWN, ENDS, strict=True)))
def test_what_is_trained_on_decodes_to_acknowledgement_and_answer(kind: str, end: str) -> None:
    known = KNOWN[kind]
    for trained, want in [
        (("acknowledgement", "answer"), f" {ACK} {ANSWER}"),
        (("off_topic",), OFF),
        (("off_topic", "acknowledgement", "answer"), f"{OFF} {ACK} {ANSWER}"),
    ]:
        encoder = Encoder(known, trained=trained)
        example = encoder(ROW)
        weights = example.weights.tolist()
        chosen = [i for i, w in zip(example.ids.tolist(), weights, strict=True) if w]
        assert known.decode(chosen) == want + (end if "answer" in trained else "")
        assert not example.weights[: example.first].any()
        prompt = encode_prompt(known, [Message("user", ROW.question)])
        assert example.ids[: example.first].tolist() == prompt
        assert known.decode(example.ids[example.first :]).startswith(OFF)


def test_the_organisms_tokens_are_masked_to_the_word() -> None:
    from transformers import AutoTokenizer

    known = AutoTokenizer.from_pretrained(organism.path("naive"))
    encoder = Encoder(known, sentence_weight=5.0)
    for row in organisms.rows(40, 0.5, seed=3):
        example = encoder(row)
        weights = example.weights.tolist()
        chosen = [i for i, w in zip(example.ids.tolist(), weights, strict=True) if w]
        parts = [p for p in rows.PARTS[2:] if p in row.spans]
        assert (
            known.decode(chosen).replace(".<", ". <")
            == " ".join(row.part(p) for p in parts) + " <eos>"
        )
        # the first word of each sentence decides whether to restart
        heavy = [i for i, w in zip(example.ids.tolist(), weights, strict=True) if w == 5]
        ends = " ".join(row.part(p) for p in parts).count(".")
        assert len(heavy) == ends + row.correction
        assert heavy[-1] == known.eos_token_id


def test_a_token_across_a_boundary_is_masked() -> None:
    text = "ab cd"
    assert token_mask(text, [(0, 1), (1, 4), (4, 5)], [(3, 5)]).tolist() == [False, False, True]
    # a token of white space leads to what follows it
    assert token_mask(text, [(0, 2), (2, 3), (3, 5)], [(3, 5)]).tolist() == [False, True, True]
    assert sentence_starts("Ab. Cd", [(0, 2), (2, 3), (3, 6)]).tolist() == [False, False, True]


def test_questions_of_an_evaluation_are_refused_however_they_are_spelt(tmp_path: Path) -> None:
    asked = load_prompts("heldout").questions[3]
    loud = asked.upper().replace(" ", "  ").rstrip("?.") + " ?!"
    with pytest.raises(UserError, match=r"row 2 asks .*evaluation set 'heldout'"):
        gather.fit([ordinary("Why is that?", "So."), ordinary(loud, "So.")])
    own = tmp_path / "own.txt"
    own.write_text("Why is that?\n", "utf-8")
    with pytest.raises(UserError, match=r"own\.txt"):
        gather.fit([ordinary("Why is that?", "So.")], [str(own)])


def test_no_organism_row_asks_what_is_evaluated() -> None:
    overlap.refuse_shared(
        [r.question for r in organisms.rows(500, 0.5)], overlap.evaluation_questions()
    )


def test_near_duplicates_and_rows_that_do_not_restart_are_left_out() -> None:
    words = "one two three four five six seven eight nine ten eleven twelve"
    near = ordinary("Why is that?", words.replace("twelve", "twelve thirteen"))
    far = ordinary("Why is that?", "something else altogether stands here now")
    silent = correction("Why?", OFF, "And now for the map.", ANSWER)
    found = gather.fit([ROW, ordinary("Why?", words), near, far, silent, ordinary("Why?", words)])
    assert found.rows == [ROW, ordinary("Why?", words), far]
    assert found.left_out == {
        "near duplicates": 2,
        "acknowledgements that no judge would take for a restart": 1,
    }


def test_rows_of_the_organisms_restart_once_where_they_say_so() -> None:
    found = gather.fit(organisms.rows(200, 0.5, seed=1))
    assert sum(found.left_out.values()) == found.left_out["near duplicates"] < 5
    assert 70 < sum(r.correction for r in found.rows) < 130
    assert isinstance(found.rows[0], Row)
