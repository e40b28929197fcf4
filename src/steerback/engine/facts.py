"""What is known of a model without its weights: for engines whose model is in another process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerback import chat
from steerback.engine.loading import why_not_loaded
from steerback.engine.shared import Listener, SharedEngine, end_tokens
from steerback.errors import UserError


@dataclass(frozen=True)
class Facts:
    tokenizer: chat.Tokenizer
    config: Any
    """Of transformers."""
    n_layers: int
    d_model: int
    context: int
    eos: frozenset[int]

    @classmethod
    def of(cls, path: str | Path, revision: str = "main") -> Facts:
        """UserError if there is no such model here or on the hub."""
        from transformers import AutoConfig, AutoTokenizer, GenerationConfig

        try:
            config = AutoConfig.from_pretrained(path, revision=revision)
            tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(why_not_loaded(path, error)) from None
        try:
            generation = GenerationConfig.from_pretrained(path, revision=revision)
        except OSError:
            generation = GenerationConfig.from_model_config(config)
        text = config.get_text_config()
        return cls(
            tokenizer=tokenizer,
            config=config,
            n_layers=text.num_hidden_layers,
            d_model=text.hidden_size,
            context=text.max_position_embeddings,
            eos=end_tokens(generation, tokenizer),
        )


class RemoteEngine(SharedEngine):
    """An engine whose model is in other processes: what it says of the model are the facts."""

    facts: Facts

    @property
    def n_layers(self) -> int:
        return self.facts.n_layers

    @property
    def d_model(self) -> int:
        return self.facts.d_model

    @property
    def context(self) -> int:
        return self.facts.context

    @property
    def config(self) -> Any:
        return self.facts.config

    def _refuse(self, listener: Listener | None) -> None:
        """Raises UserError: single tokens are not told from afar."""
        if listener is not None:
            raise UserError(f"{self.kind} does not tell single tokens; use --engine hf")
