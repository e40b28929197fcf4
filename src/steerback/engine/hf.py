"""The in-process engine: any Hugging Face causal language model on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from steerback import chat, steer
from steerback.engine import exact, reading, variants
from steerback.engine.base import Backend, Pair, Pool, Progress, Reading, Site, Watch
from steerback.engine.decoding import Decoding, Finished
from steerback.engine.fused import FusedDecoder, supports
from steerback.engine.hooked import HookedModel, hooked
from steerback.engine.loading import placement
from steerback.engine.slots import Job
from steerback.errors import UserError
from steerback.memory import Quantize
from steerback.sae import Source
from steerback.types import Generation, Message, Sampling, Trace, Trial

DEFAULT_SLOTS = 64
NORM_TOKENS = 64
"""Length of the unsteered answers over which the median residual norm is taken."""


class HFEngine:
    """Generates steered text and reads activations, in batches whose rows know nothing of another.

    `backend` is "auto" (the fused decoder where the family has one and it agrees with the
    transformers forward on a probe, else that forward), "fused" or "transformers".
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: chat.Tokenizer,
        *,
        name: str,
        sources: Mapping[str, Source] | None = None,
        slots: int = DEFAULT_SLOTS,
        backend: str = "auto",
        variant: Sequence[str] = (),
    ) -> None:
        if slots < 1:
            raise UserError(f"slots is {slots}; it must be 1 or more")
        self.name = name
        self.model: Any = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.slots = slots
        self.hooked = HookedModel(model)
        _check_layers(self.hooked)
        self.backend = _choose(self.hooked, model, backend)
        variants.check(self.hooked, tokenizer, variant)
        self.variant = tuple(variant)
        """Ways of the published code (engine/variants.py) in which readouts and answers are made; for
        trials it is what they say."""
        self._at_mlp: HookedModel | None = None
        self.sources: dict[str, Source] = {}
        self.norms: dict[int, float] = {}
        self.packer = steer.Packer(
            self.sources,
            device=self.backend.device,
            dtype=self.backend.dtype,
            norms=self.norms,
        )
        for source in (sources or {}).values():
            self.add_source(source)
        self.eos = _end_tokens(self.model, tokenizer)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        name: str | None = None,
        device: str | None = None,
        dtype: str = "auto",
        revision: str = "main",
        quantize: Quantize = "none",
        device_map: str | None = None,
        **settings: Any,
    ) -> HFEngine:
        """Load a folder, or a hub name at a commit, tag or branch. dtype: auto, float32, bfloat16 or
        float16; device: None is the GPU if there is one; device_map: as accelerate takes it, instead
        of one device. UserError when it cannot be found or read, or a package is missing."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        kind = _dtype(dtype, device)
        placed = placement(quantize, device_map, kind, device)
        try:
            with no_loading_bar():
                tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
                model = AutoModelForCausalLM.from_pretrained(
                    path, dtype=kind, revision=revision, **placed
                )
        except (OSError, ValueError, KeyError) as error:
            raise UserError(_why_not_loaded(path, error)) from None
        try:
            model = model if placed else model.to(device)
        except (RuntimeError, AssertionError) as error:
            first = str(error).splitlines()[0]
            raise UserError(
                f"device {device!r} cannot be used: {first}; try --device cpu"
            ) from None
        return cls(model, tokenizer, name=name or str(path), **settings)

    @property
    def block(self) -> exact.Block:
        """Rows that every product of a step has a multiple of, and whether that makes a trial's bits
        the same in any batch on this machine."""
        return self.backend.block

    # --- sources ------------------------------------------------------------------------------

    def add_source(self, source: Source) -> None:
        """Make an SAE or vector set known under its name. UserError if its width is not the model's."""
        if source.d_model != self.backend.d_model:
            raise UserError(
                f"{source.name!r} has directions of width {source.d_model}, but {self.name} has a "
                f"residual stream of width {self.backend.d_model}; use an SAE made for this model"
            )
        self.sources[source.name] = source

    def streams(self, pairs: Sequence[Pair], layer: int) -> list[torch.Tensor]:
        """Residual stream that leaves `layer`, after its edits, over the tokens that are read of each
        pair: [tokens, d_model] float32 on the CPU, in the order of the pairs."""
        self.check_layer(layer, "reading the residual stream")
        self.packer.check([p.interventions for p in pairs])
        found: dict[int, torch.Tensor] = {}
        for batch in reading.batches(self.backend, pairs):
            chosen = [pairs[i] for i in batch]
            held = reading.residuals(self.backend, self.packer, chosen, layer)
            # cloned: a view would keep the padded batch alive
            found.update((i, h.float().cpu().clone()) for i, h in zip(batch, held, strict=True))
        return [found[i] for i in range(len(pairs))]

    def measure_norm(self, layer: int, questions: Sequence[str]) -> float:
        """Median norm of the residual stream that leaves `layer`, over the tokens of unsteered greedy
        answers (at most 64 tokens) to `questions`. Remembered for interventions of unit "resid"."""
        self.check_layer(layer, "the residual norm")
        pairs = self.answers(questions)
        norms = [
            h.float().norm(dim=-1)
            for batch in reading.batches(self.backend, pairs)
            for h in reading.residuals(self.backend, self.packer, [pairs[i] for i in batch], layer)
        ]
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

    # --- generation ---------------------------------------------------------------------------

    def generate(
        self,
        trials: Iterable[Trial],
        *,
        watch: Watch | None = None,
        progress: Callable[[Progress], None] | None = None,
        listener: Callable[[Trial, int], None] | None = None,
        opening: str = "",
    ) -> Iterator[Generation]:
        """See `Engine.generate`. `listener` is told each token as it is drawn.

        All trials are checked before the first token is drawn: UserError names the first bad one.
        """
        jobs = [self._job(i, trial) for i, trial in enumerate(trials)]
        if watch is not None:
            self._check_watch(watch)
        self.packer.check([job.trial.interventions for job in jobs])
        ids = chat.opening_ids(self.tokenizer, opening)
        # a padded prompt then fits a cache whose capacity is padded
        ids = ids[: len(ids) // exact.LENGTH * exact.LENGTH]
        return self._generate(jobs, watch, progress, listener, ids)

    def _generate(
        self,
        jobs: list[Job],
        watch: Watch | None,
        progress: Callable[[Progress], None] | None,
        listener: Callable[[Trial, int], None] | None,
        opening: Sequence[int],
    ) -> Iterator[Generation]:
        start, tokens, done, total = time.perf_counter(), 0, 0, len(jobs)
        for finished in self._every_variant(jobs, watch, listener, opening):
            for one in finished:
                done, tokens = done + 1, tokens + len(one[1])
                yield self._generation(one, watch)
            if progress is not None and finished:
                seconds = time.perf_counter() - start
                progress(Progress(done, total, tokens, seconds))

    def _every_variant(
        self,
        jobs: list[Job],
        watch: Watch | None,
        listener: Callable[[Trial, int], None] | None,
        opening: Sequence[int],
    ) -> Iterator[list[Finished]]:
        """Trials of one variant share weights and sites; the variants come one after another, and so
        do trials with and without the opening. Nothing else may use the model meanwhile, for its
        weights may be a variant's."""
        groups: dict[tuple[tuple[str, ...], bool], list[Job]] = {}
        for job in jobs:
            groups.setdefault((job.trial.variant, job.begins(opening)), []).append(job)
        for (variant, begins), left in groups.items():
            with variants.in_force(self.hooked, variant):
                while left:
                    backend = self._backend_of(variant)
                    begun = opening if begins else ()
                    run = self._decoding(left, watch, listener, backend, begun)
                    left = []
                    try:
                        yield from _inference(run.steps())
                    except torch.OutOfMemoryError:
                        left, used = run.unfinished(), run.slots
                        del run  # and its cache
                        self._halve_slots(used)

    def _backend_of(self, variant: Sequence[str]) -> Backend:
        if variants.MLP_SITE not in variant:
            return self.backend
        self._at_mlp = self._at_mlp or variants.at_mlp(self.hooked)
        return self._at_mlp

    def _decoding(
        self,
        jobs: list[Job],
        watch: Watch | None,
        listener: Callable[[Trial, int], None] | None,
        backend: Backend,
        opening: Sequence[int],
    ) -> Decoding:
        tell = None if listener is None else (lambda job, token: listener(job.trial, token))
        return Decoding(
            backend,
            self.packer,
            jobs,
            slots=self.slots,
            eos=self.eos,
            stops=self._stops,
            watch=watch,
            listener=tell,
            opening=opening,
        )

    def _halve_slots(self, used: int) -> None:
        """Answer to an exhausted accelerator: the trials in flight start over in fewer slots."""
        if used == 1:
            raise UserError(
                f"{self.name} runs out of memory with a single slot; use a shorter max_new_tokens, "
                "a smaller dtype or more memory"
            ) from None
        self.slots = used // 2
        if self.backend.device.type == "cuda":
            torch.cuda.empty_cache()

    def _job(self, order: int, trial: Trial) -> Job:
        for i in trial.interventions:
            self.check_layer(i.layer, f"intervention on {i.source}:{i.index}")
        variants.check(self.hooked, self.tokenizer, trial.variant)
        prompt = chat.encode_prompt(self.tokenizer, trial.messages)
        prompt = variants.prompt_ids(self.tokenizer, prompt, trial.variant)
        prefill = chat.encode_text(self.tokenizer, trial.prefill)
        job = Job(trial, order, prompt + prefill, len(prefill))
        if job.room > self.backend.context:
            raise UserError(
                f"prompt {trial.question[:60]!r} has {len(job.prompt_ids)} tokens and asks for "
                f"{trial.sampling.max_new_tokens} more, but {self.name} has a context of "
                f"{self.backend.context}; shorten it or lower max_new_tokens"
            )
        return job

    def check(self, trial: Trial) -> None:
        """Raises UserError if the trial could not be generated."""
        self._job(0, trial)

    def check_layer(self, layer: int, what: str) -> None:
        """Raises UserError, which begins with `what`, unless the model has this decoder layer."""
        if not 0 <= layer < self.backend.n_layers:
            raise UserError(
                f"{what}: layer {layer} does not exist; {self.name} has layers 0 to "
                f"{self.backend.n_layers - 1}"
            )

    def _check_watch(self, watch: Watch) -> None:
        self.check_layer(watch.layer, f"watching {watch.source}")
        self.packer.source(watch.source).reader(list(watch.every))

    def _stops(self, job: Job, ids: list[int]) -> bool:
        text = chat.decode(self.tokenizer, ids)
        return any(stop in text for stop in job.trial.sampling.stop)

    def _generation(self, finished: Finished, watch: Watch | None) -> Generation:
        job, ids, reason, values = finished
        whole = [*job.prompt_ids[len(job.prompt_ids) - job.prefill :], *ids]
        text = chat.decode(self.tokenizer, whole)
        if reason == "stop":
            text = _cut(text, job.trial.sampling.stop)
        trace = None
        if watch is not None and values is not None:
            columns = watch.columns(job.trial.interventions)
            latents = tuple(watch.every[n] for n in columns)
            trace = Trace(watch.source, watch.layer, latents, values[:, columns].cpu().numpy())
        return Generation(
            trial_key=job.trial.key,
            prompt_ids=tuple(job.prompt_ids),
            token_ids=tuple(ids),
            text=text,
            finish_reason=reason,
            trace=trace,
        )

    # --- readouts -----------------------------------------------------------------------------

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
        self.check_layer(layer, f"reading {source}")
        self.packer.check([p.interventions for p in pairs])
        with variants.in_force(self.hooked, self.variant):
            return reading.read(
                self._backend_of(self.variant),
                self.packer,
                pairs,
                source=self.packer.source(source),
                layer=layer,
                latents=latents,
                pool=pool,
            )

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a piece of a response."""
        return tuple(chat.encode_text(self.tokenizer, text))

    def encode_prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return tuple(chat.encode_prompt(self.tokenizer, messages))


@contextmanager
def no_loading_bar() -> Iterator[None]:
    """Progress is ours to show: the library's own bar would write over it."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _inference(steps: Iterator[list[Finished]]) -> Iterator[list[Finished]]:
    """Run each step in inference mode, and the caller's code between them outside of it."""
    while True:
        with torch.inference_mode():
            finished = next(steps, None)
        if finished is None:
            return
        yield finished


def _cut(text: str, stops: Sequence[str]) -> str:
    found = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    return text[: min(found)] if found else text


def _end_tokens(model: Any, tokenizer: chat.Tokenizer) -> frozenset[int]:
    """Tokens that end a response: those of the generation config, or the tokenizer's."""
    config = getattr(model, "generation_config", None)
    eos = getattr(config, "eos_token_id", None)
    if eos is None:
        eos = getattr(tokenizer, "eos_token_id", None)
    if eos is None:
        return frozenset()
    return frozenset(eos if isinstance(eos, (list, tuple)) else [eos])


def _dtype(name: str, device: str) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name == "auto":
        return torch.float32 if device == "cpu" else torch.bfloat16
    if name not in known:
        raise UserError(f"dtype is {name!r}; use auto, {', '.join(known)}")
    return known[name]


def _why_not_loaded(path: str | Path, error: Exception) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if Path(path).exists():
        return f"model folder {path} cannot be read: {first}"
    if os.sep in str(path) and str(path).count("/") != 1:
        return f"there is no model folder {path}"
    return (
        f"model {path!r} is neither a folder here nor readable from the hub: {first} "
        "(check the name, the network, and for gated models HF_TOKEN)"
    )


def _choose(reference: HookedModel, model: nn.Module, backend: str) -> Backend:
    if backend not in ("auto", "fused", "transformers"):
        raise UserError(f"backend is {backend!r}; use auto, fused or transformers")
    if backend == "transformers":
        return reference
    if not supports(model):
        if backend == "fused":
            raise UserError(
                f"{type(model).__name__} has no fused decoder; use backend auto or transformers"
            )
        return reference
    fused = FusedDecoder(model)
    gap = _disagreement(fused, reference)
    if gap < 0.05:
        return fused
    if backend == "fused":
        raise UserError(
            f"the fused decoder disagrees with transformers on {type(model).__name__} (relative "
            f"gap of the logits {gap:.2g}); use backend transformers"
        )
    return reference


def _probe(backend: Backend) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """Two short sequences of token ids spread over the vocabulary."""
    ids = torch.arange(2 * 7, device=backend.device).view(2, 7) * (backend.vocab // 15 or 1)
    return ids % backend.vocab, np.array([7, 5])


@torch.inference_mode()
def _disagreement(fused: Backend, reference: Backend) -> float:
    """Largest gap between the two logits on the probe, in units of the reference's spread."""
    ids, lengths = _probe(reference)
    out = []
    for backend in (fused, reference):
        cache = backend.allocate(2, 8)
        backend.prefill(cache, ids, lengths, np.arange(2), {})
        out.append(backend.step(cache, ids[:, 0], lengths + 1, {}).float())
    return float((out[0] - out[1]).abs().max() / out[1].std().clamp(min=1e-6))


@torch.inference_mode()
def _check_layers(backend: HookedModel) -> None:
    """The output of each hooked layer must be the residual stream that transformers reports."""
    ids, _ = _probe(backend)
    seen: dict[int, torch.Tensor] = {}

    def keep(i: int) -> Site:
        def site(h: torch.Tensor) -> torch.Tensor:
            seen[i] = h
            return h

        return site

    sites = {i: keep(i) for i in range(backend.n_layers)}
    with hooked(backend.layers, sites):
        out = backend.model(input_ids=ids, output_hidden_states=True, use_cache=False)
    # the last hidden state is reported after the final norm, so it cannot be compared
    for i in range(backend.n_layers - 1):
        want = out.hidden_states[i + 1].reshape(-1, backend.d_model)
        if not torch.equal(seen[i], want):
            raise UserError(
                f"{type(backend.model).__name__}: the output of decoder layer {i} is not the residual "
                "stream that transformers reports; this architecture cannot be steered"
            )
