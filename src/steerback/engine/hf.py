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

from steerback import chat
from steerback.engine import exact, reading, variants
from steerback.engine.base import Backend, Pair, Pool, Progress, Reading, Site, Watch
from steerback.engine.decoding import Decoding, Finished
from steerback.engine.fused import FusedDecoder, supports
from steerback.engine.hooked import HookedModel, hooked
from steerback.engine.loading import placement
from steerback.engine.shared import SharedEngine, end_tokens, traced
from steerback.engine.slots import Job
from steerback.errors import UserError
from steerback.memory import Quantize
from steerback.sae import Source
from steerback.types import Generation, Trial

DEFAULT_SLOTS = 64


class HFEngine(SharedEngine):
    """Generates steered text and reads activations, in batches whose rows know nothing of another.

    `backend` is "auto" (the fused decoder where the family has one and it agrees with the
    transformers forward on a probe, else that forward), "fused" or "transformers".
    """

    tells = True

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
        self.model: Any = model.eval().requires_grad_(False)
        self.hooked = HookedModel(model)
        _check_layers(self.hooked)
        self.backend = _choose(self.hooked, model, backend)
        variants.check(self.hooked, tokenizer, variant)
        self._at_mlp: HookedModel | None = None
        self._begin(
            name,
            tokenizer,
            slots,
            device=self.backend.device,
            dtype=self.backend.dtype,
            variant=variant,
        )
        for source in (sources or {}).values():
            self.add_source(source)
        self.eos = end_tokens(getattr(self.model, "generation_config", None), tokenizer)

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
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        kind = dtype_of(dtype, device)
        placed = placement(quantize, device_map, kind, device)
        try:
            with no_loading_bar():
                tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
                config = AutoConfig.from_pretrained(path, revision=revision)
                model = AutoModelForCausalLM.from_pretrained(
                    path, dtype=kind, revision=revision, **placed, **_attention(config)
                )
        except (OSError, ValueError, KeyError) as error:
            raise UserError(why_not_loaded(path, error)) from None
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

    @property
    def n_layers(self) -> int:
        return self.backend.n_layers

    @property
    def d_model(self) -> int:
        return self.backend.d_model

    @property
    def context(self) -> int:
        return self.backend.context

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def kind(self) -> str:
        return self.backend.kind

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
        jobs = self._jobs(trials, watch)
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
                yield self._made(one, watch)
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

    def check_variant(self, variant: Sequence[str]) -> None:
        variants.check(self.hooked, self.tokenizer, variant)

    def _prompt_ids(self, trial: Trial) -> list[int]:
        return variants.prompt_ids(self.tokenizer, super()._prompt_ids(trial), trial.variant)

    def _made(self, finished: Finished, watch: Watch | None) -> Generation:
        job, ids, reason, values = finished
        trace = None
        if watch is not None and values is not None:
            trace = traced(watch, job, values.cpu().numpy())
        return self._generation(job, ids, reason, trace)

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


def _attention(config: Any) -> dict[str, str]:
    """Some versions of transformers give Gemma 2 an attention that leaves its soft cap out."""
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    return {"attn_implementation": "eager"} if capped else {}


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


def dtype_of(name: str, device: str) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name == "auto":
        return torch.float32 if device == "cpu" else torch.bfloat16
    if name not in known:
        raise UserError(f"dtype is {name!r}; use auto, {', '.join(known)}")
    return known[name]


def why_not_loaded(path: str | Path, error: Exception) -> str:
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
