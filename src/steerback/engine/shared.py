"""What every engine does alike: names, checks, prompts to tokens, tokens to text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from steerback import chat, steer
from steerback.engine.base import Pair, Pool, Progress, Reading, Watch
from steerback.engine.slots import Job
from steerback.errors import UserError
from steerback.sae import Source
from steerback.types import FinishReason, Generation, Message, Sampling, Trace, Trial

NORM_TOKENS = 64
"""Length of the unsteered answers over which the median residual norm is taken."""

Listener = Callable[[Trial, int], None]
"""Told each token as it is drawn."""


class SharedEngine:
    """Base of the engines; see `engine.base.Engine` for what is promised."""

    tells: ClassVar[bool] = False
    """Whether `generate` takes a listener."""

    name: str
    tokenizer: chat.Tokenizer
    slots: int
    """Trials at the same time."""
    variant: tuple[str, ...]
    """Ways of the published code (engine/variants.py) in which readouts and answers are made; for
    trials it is what they say."""
    eos: frozenset[int]

    def _begin(
        self,
        name: str,
        tokenizer: chat.Tokenizer,
        slots: int,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        variant: Sequence[str] = (),
    ) -> None:
        if slots < 1:
            raise UserError(f"slots is {slots}; it must be 1 or more")
        self.name, self.tokenizer, self.slots = name, tokenizer, slots
        self.variant = tuple(variant)
        self.sources: dict[str, Source] = {}
        self.norms: dict[int, float] = {}
        """Median residual norm by layer, for interventions of unit "resid"."""
        self.packer = steer.Packer(self.sources, device=device, dtype=dtype, norms=self.norms)

    # --- what an engine says of its model -------------------------------------------------------

    @property
    def n_layers(self) -> int:
        raise NotImplementedError

    @property
    def d_model(self) -> int:
        raise NotImplementedError

    @property
    def context(self) -> int:
        """Longest sequence the model was made for, in tokens."""
        raise NotImplementedError

    @property
    def config(self) -> Any:
        """The model's configuration, as transformers has it."""
        raise NotImplementedError

    @property
    def kind(self) -> str:
        """What decodes, as it is noted with each trial."""
        raise NotImplementedError

    # --- what an engine does --------------------------------------------------------------------

    def generate(
        self,
        trials: Iterable[Trial],
        *,
        watch: Watch | None = None,
        progress: Callable[[Progress], None] | None = None,
        listener: Listener | None = None,
        opening: str = "",
    ) -> Iterator[Generation]:
        """See `Engine.generate`. All trials are checked before the first token is drawn."""
        raise NotImplementedError

    def read(
        self,
        pairs: Sequence[Pair],
        *,
        source: str,
        layer: int,
        latents: Sequence[int] | None = None,
        pool: Pool = "max",
    ) -> list[Reading]:
        """See `Engine.read`: activations on the stream that leaves `layer`, after its edits."""
        raise NotImplementedError

    def streams(self, pairs: Sequence[Pair], layer: int) -> list[Tensor]:
        """Residual stream that leaves `layer`, after its edits, over the tokens that are read of each
        pair: [tokens, d_model] float32 on the CPU, in the order of the pairs."""
        raise NotImplementedError

    def close(self) -> None:
        """Give back processes and memory; nothing can be asked afterwards."""

    # --- what follows from those ----------------------------------------------------------------

    def add_source(self, source: Source) -> None:
        """Make an SAE or vector set known under its name. UserError if its width is not the model's."""
        if source.d_model != self.d_model:
            raise UserError(
                f"{source.name!r} has directions of width {source.d_model}, but {self.name} has a "
                f"residual stream of width {self.d_model}; use an SAE made for this model"
            )
        self.sources[source.name] = source

    def measure_norm(self, layer: int, questions: Sequence[str]) -> float:
        """Median norm of the residual stream that leaves `layer`, over the tokens of unsteered greedy
        answers (at most 64 tokens) to `questions`. Remembered for interventions of unit "resid"."""
        self.check_layer(layer, "the residual norm")
        norms = [h.norm(dim=-1) for h in self.streams(self.answers(questions), layer)]
        # sorted by value, so the median does not depend on the order in which answers finished
        self.norms[layer] = float(torch.cat(norms).median())
        return self.norms[layer]

    def answers(self, questions: Sequence[str]) -> list[Pair]:
        """Unsteered greedy answers of at most 64 tokens, in the order of the questions."""
        sampling = Sampling(temperature=0, repetition_penalty=1, max_new_tokens=NORM_TOKENS)
        trials = [
            Trial(
                "answer",
                "",
                self.name,
                q,
                (Message("user", q),),
                sampling,
                seed=0,
                variant=self.variant,
            )
            for q in questions
        ]
        found = {g.trial_key: g for g in self.generate(trials)}
        return [Pair(found[t.key].prompt_ids, found[t.key].token_ids) for t in trials]

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a piece of a response."""
        return tuple(chat.encode_text(self.tokenizer, text))

    def encode_prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return tuple(chat.encode_prompt(self.tokenizer, messages))

    # --- checks ---------------------------------------------------------------------------------

    def check_variant(self, variant: Sequence[str]) -> None:
        """Raises UserError for a way of the published code that this engine cannot go."""
        if variant:
            raise UserError(
                f"the {self.kind} engine does not run the published code's ways ({variant[0]}); "
                "use --engine hf"
            )

    def check(self, trial: Trial) -> None:
        """Raises UserError if the trial could not be generated."""
        self._job(0, trial)

    def check_layer(self, layer: int, what: str) -> None:
        """Raises UserError, which begins with `what`, unless the model has this decoder layer."""
        if not 0 <= layer < self.n_layers:
            raise UserError(
                f"{what}: layer {layer} does not exist; {self.name} has layers 0 to "
                f"{self.n_layers - 1}"
            )

    def _jobs(self, trials: Iterable[Trial], watch: Watch | None) -> list[Job]:
        """The trials, ready to run; UserError names the first that cannot."""
        jobs = [self._job(i, trial) for i, trial in enumerate(trials)]
        if watch is not None:
            self.check_layer(watch.layer, f"watching {watch.source}")
            self.packer.source(watch.source).reader(list(watch.every))
        self.packer.check([job.trial.interventions for job in jobs])
        return jobs

    def _job(self, order: int, trial: Trial) -> Job:
        for i in trial.interventions:
            self.check_layer(i.layer, f"intervention on {i.source}:{i.index}")
        self.check_variant(trial.variant)
        prompt = self._prompt_ids(trial)
        prefill = chat.encode_text(self.tokenizer, trial.prefill)
        job = Job(trial, order, prompt + prefill, len(prefill))
        if job.room > self.context:
            raise UserError(
                f"prompt {trial.question[:60]!r} has {len(job.prompt_ids)} tokens and asks for "
                f"{trial.sampling.max_new_tokens} more, but {self.name} has a context of "
                f"{self.context}; shorten it or lower max_new_tokens"
            )
        return job

    def _prompt_ids(self, trial: Trial) -> list[int]:
        return chat.encode_prompt(self.tokenizer, trial.messages)

    def _reason(self, job: Job, ids: Sequence[int]) -> FinishReason:
        """Why a response that is over ended."""
        if ids[-1] in self.eos:
            return "eos"
        return "stop" if job.trial.sampling.stop and self._stops(job, list(ids)) else "length"

    # --- text -----------------------------------------------------------------------------------

    def _stops(self, job: Job, ids: list[int]) -> bool:
        text = chat.decode(self.tokenizer, ids)
        return any(stop in text for stop in job.trial.sampling.stop)

    def _generation(
        self, job: Job, ids: Sequence[int], reason: FinishReason, trace: Trace | None
    ) -> Generation:
        whole = [*job.prompt_ids[len(job.prompt_ids) - job.prefill :], *ids]
        text = chat.decode(self.tokenizer, whole)
        if reason == "stop":
            text = _cut(text, job.trial.sampling.stop)
        return Generation(
            trial_key=job.trial.key,
            prompt_ids=tuple(job.prompt_ids),
            token_ids=tuple(ids),
            text=text,
            finish_reason=reason,
            trace=trace,
        )


def not_finite(trial: Trial) -> UserError:
    """What to say where a model's logits are no numbers: never go on with those."""
    steering = ", ".join(f"{i.source}:{i.index} = {i.value:g}" for i in trial.interventions)
    return UserError(
        f"the model's logits are not finite for {trial.question[:60]!r} "
        f"(interventions: {steering or 'none'}); lower the strength or use dtype bfloat16"
    )


def _cut(text: str, stops: Sequence[str]) -> str:
    found = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    return text[: min(found)] if found else text


def end_tokens(generation_config: Any, tokenizer: chat.Tokenizer) -> frozenset[int]:
    """Tokens that end a response: those of the generation config, or the tokenizer's."""
    eos = getattr(generation_config, "eos_token_id", None)
    if eos is None:
        eos = getattr(tokenizer, "eos_token_id", None)
    if eos is None:
        return frozenset()
    return frozenset(eos if isinstance(eos, (list, tuple)) else [eos])


def traced(watch: Watch, job: Job, values: Any) -> Trace:
    """What is kept of watched activations [tokens, len(watch.every)] of one trial."""
    columns = watch.columns(job.trial.interventions)
    latents = tuple(watch.every[n] for n in columns)
    return Trace(watch.source, watch.layer, latents, values[:, columns])
