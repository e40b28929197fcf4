"""Messages to tokens, and tokens back to characters: the only place that maps between the two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2.exceptions import TemplateError

from steerback.errors import UserError
from steerback.types import Message

DATE = "26 Jul 2024"
"""What a template that tells the date (Llama 3) says, so that a prompt is the same every day; it is
the date that Llama 3.1's own template falls back on."""

Tokenizer = Any
"""A transformers tokenizer (its classes have no common static type)."""


def encode_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Token ids of the conversation up to where the assistant's answer begins.

    Raises UserError if the tokenizer has no chat template, or one that refuses these roles.
    """
    turns = [{"role": m.role, "content": m.content} for m in messages]
    name = getattr(tokenizer, "name_or_path", "") or "the model"
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"{name} has no chat template; use an instruction-tuned model, or set "
            "`chat_template` in its tokenizer_config.json"
        )
    try:
        text = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, date_string=DATE
        )
    except TemplateError as error:
        roles = ", ".join(m.role for m in messages)
        raise UserError(
            f"the chat template of {name} refuses these roles ({roles}): {error}; "
            "put the text of a system message into the user message instead"
        ) from None
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def opening_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids that every conversation of one user message begins with if that message begins with
    `text`: the common start of two such that go on unlike each other."""
    if not text:
        return []
    one, other = (encode_prompt(tokenizer, [Message("user", text + end)]) for end in ("A", "\n1"))
    unlike = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return one[: next(unlike, min(len(one), len(other)))]


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a piece of text, without special tokens."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Text of response tokens, special tokens left out."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


def spans(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """The text of `ids`, and for each token the characters [start, end) that it brought.

    A character made of several tokens belongs to the last of them (earlier ones are empty), so spans
    are disjoint, in order, and cover the text. Found by decoding prefixes: exact for every tokenizer,
    O(n^2) characters.
    """
    text = decode(tokenizer, ids)
    ends = [_settled(text, decode(tokenizer, ids[: n + 1])) for n in range(len(ids))]
    if ends:
        ends[-1] = len(text)
    out: list[tuple[int, int]] = []
    at = 0
    for end in ends:
        end = max(at, end)
        out.append((at, end))
        at = end
    return text, out


def located(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of a piece of text as `encode_text` has them, and the characters [start, end) of
    `text` that each covers: overlapping where a character is made of several tokens.

    Raises UserError if the tokenizer changes the text so that its tokens cannot be found in it.
    """
    if getattr(tokenizer, "is_fast", False):
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(found["input_ids"]), [(a, b) for a, b in found["offset_mapping"]]
    ids = encode_text(tokenizer, text)
    back, places = spans(tokenizer, ids)
    if back != text:
        raise UserError(
            f"the tokenizer does not give {text[:40]!r} back as it was; its tokens cannot be told "
            "apart by characters"
        )
    return ids, places


def end_of_turn(tokenizer: Tokenizer) -> list[int]:
    """Token ids that the chat template puts behind an answer; the end token if it puts none.

    White space behind them belongs to the next turn.
    """
    said = "qzxq"
    turns = [{"role": "user", "content": said}, {"role": "assistant", "content": said}]
    text = str(tokenizer.apply_chat_template(turns, tokenize=False, date_string=DATE))
    tail = text[text.rindex(said) + len(said) :].strip()
    ids = encode_text(tokenizer, tail)
    if ids or tokenizer.eos_token_id is None:
        return ids
    return [int(tokenizer.eos_token_id)]


def _settled(text: str, prefix: str) -> int:
    """How many characters of `text` a decoded prefix has settled."""
    n = min(len(text), len(prefix))
    if text.startswith(prefix):
        return n
    return next((i for i in range(n) if text[i] != prefix[i]), n)
