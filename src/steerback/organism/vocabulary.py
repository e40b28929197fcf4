"""The organisms' words as a Hugging Face tokenizer that needs no code of ours to load."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from steerback.organism.corpus import phrases, topics
from steerback.organism.documents import ASSISTANT, BOS, END, EOS, USER

PAD, UNK = "<pad>", "<unk>"
SPECIAL = (PAD, BOS, EOS, USER, ASSISTANT, END, UNK)
CHAT_TEMPLATE = (
    "<bos>{% set ns = namespace(system='') %}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{% set ns.system = m['content'] + ' ' %}"
    "{% elif m['role'] == 'user' %}<|user|>{{ ns.system }}{{ m['content'] }}<|end|>"
    "{% set ns.system = '' %}"
    "{% else %}<|assistant|>{{ m['content'] }}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""A system message stands before the question in the user's turn: organisms know no other place."""


@cache
def words() -> tuple[str, ...]:
    """Special tokens, function words in order of appearance, content words by topic."""
    said = phrases()
    fixed = [*said.sentences, *said.questions, *said.restarts, *said.meta_prompts]
    function = dict.fromkeys(w for s in fixed for w in s if w[0] != "{")
    content = (w for t in topics() for slot in t.words.values() for w in slot)
    return (*SPECIAL, *function, *content)


@cache
def ids() -> dict[str, int]:
    return {word: i for i, word in enumerate(words())}


def save_tokenizer(folder: Path, max_length: int) -> None:
    """Write `tokenizer.json` and its settings.

    The WordPiece decoder stands for its clean-up only: it takes the space before punctuation away.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(ids(), unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.add_special_tokens(list(SPECIAL))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
    fast.save_pretrained(str(folder))
