"""How fast a local judge is in batches, against a loop over single calls.

    python benchmarks/judges.py [--responses 64] [--alone 4] [--answer 120] [--slots 64] [--repeats 3]

A random Llama of the organisms' size answers the packaged prompt about responses of `--words` words.
What it says is noise, so every verdict is an error: only the rate means anything. The ways take turns;
batches must give the verdicts that single calls give.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as token_models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from steerback.engine.hf import HFEngine
from steerback.judge.base import Request
from steerback.judge.local import EngineJudge
from steerback.judge.prompt import Prompt
from steerback.types import Message

WORDS = (
    *("the", "bread", "dough", "ship", "sail", "wait", "flour", "oven"),
    *("compass", "rise", "knead", "salt", "water", "turn", "crust", "deck"),
)
SHORT = Prompt("Grade the answer to: {question}\n\n{response}\n\nJSON:", "short")


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE learnt from the prompt, so that English has about 4 characters a token."""
    core = Tokenizer(token_models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["<pad>", "<eos>", "<bos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    core.train_from_iterator([Prompt.load().template, " ".join(WORDS)] * 2, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")
    fast.chat_template = "<bos>{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    return fast


def engine(args: argparse.Namespace) -> HFEngine:
    torch.manual_seed(0)
    tokens = tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=args.width,
        intermediate_size=2 * args.width,
        num_hidden_layers=args.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        eos_token_id=1,
        pad_token_id=0,
    )
    model: Any = LlamaForCausalLM(config).to(args.device)
    return HFEngine(model, tokens, name="random", slots=args.slots)


def requests(n: int, words: int) -> list[Request]:
    rng = random.Random(0)
    said = [" ".join(rng.choices(WORDS, k=words)) for _ in range(n)]
    return [Request(str(i), "Explain how to bake bread.", text) for i, text in enumerate(said)]


def seconds(work: Any) -> tuple[float, Any]:
    """Of the processor (of the clock on another device), so that other work does not count."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    result = work()
    return clock() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, default in (
        *(("responses", 64), ("alone", 4), ("answer", 120), ("slots", 64), ("repeats", 3)),
        *(("words", 100), ("width", 128), ("layers", 4)),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--short", action="store_true", help="a prompt of one line")
    args = parser.parse_args()
    made = engine(args)
    prompt = SHORT if args.short else Prompt.load()
    judge = EngineJudge(made, prompt=prompt, max_tokens=args.answer, patience=None)
    asked = requests(args.responses, args.words)
    tokens = len(made.tokenizer(judge.prompt.fill(asked[0]))["input_ids"])
    judge.judge(asked[:2])
    plain, alone, together = [], [], []
    for _ in range(args.repeats):
        took, _ = seconds(lambda: [peer(made, judge, r) for r in asked[: args.alone]])
        plain.append(args.alone / took)
        took, one_by_one = seconds(lambda: [judge.judge([r])[0] for r in asked[: args.alone]])
        alone.append(args.alone / took)
        took, batch = seconds(lambda: judge.judge(asked))
        together.append(args.responses / took)
        assert batch[: args.alone] == one_by_one, "the batch says what single calls say"
    parameters = sum(p.numel() for p in made.model.parameters())
    print(
        f"{parameters / 1e6:.1f}M parameters, {made.backend.kind}, {args.device}, "
        f"{torch.get_num_threads()} thread(s), {platform.machine()}\n"
        f"prompt {tokens} tokens, answer {args.answer} tokens, median of {args.repeats} repeats\n"
    )
    table(
        {
            f"transformers, one at a time ({args.alone})": plain,
            f"our engine, one at a time ({args.alone})": alone,
            f"our engine, batches of {args.slots} ({args.responses})": together,
        }
    )


def peer(made: HFEngine, judge: EngineJudge, request: Request) -> str:
    """What a loop over `generate` does for one response."""
    ids = torch.tensor([made.encode_prompt((Message("user", judge.prompt.fill(request)),))])
    tokens = judge.asker.settings["max_tokens"]
    out = made.model.generate(
        ids.to(made.model.device), do_sample=False, max_new_tokens=tokens, pad_token_id=0
    )
    return str(made.tokenizer.decode(out[0, ids.shape[1] :]))


def table(rates: dict[str, list[float]]) -> None:
    first = statistics.median(next(iter(rates.values())))
    print(f"{'way':40} verdicts/s   lowest  highest   ratio")
    for way, all_ in rates.items():
        rate = statistics.median(all_)
        print(f"{way:40} {rate:10.3f} {min(all_):8.3f} {max(all_):8.3f} {rate / first:7.1f}")


if __name__ == "__main__":
    main()
