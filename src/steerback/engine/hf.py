"""The in-process engine: any Hugging Face causal language model on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from steerback import chat
from steerback.engine import exact, probe, reading, variants
from steerback.engine.base import Backend, Pair, Pool, Progress, Reading, Watch
from steerback.engine.decoding import Decoding, Finished
from steerback.engine.hooked import HookedModel
from steerback.engine.loading import (
    attention,
    dtype_of,
    no_loading_bar,
    placement,
    why_not_loaded,
)
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
        probe.check_layers(self.hooked)
        self.backend = probe.choose(self.hooked, model, backend)
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
                    path, dtype=kind, revision=revision, **placed, **attention(config)
                )
        except (OSError, ValueError, KeyError) as error:
            raise UserError(why_not_loaded(path, error)) from None
        try:
            model = model if placed else model.to(device)
        except (RuntimeError, AssertionError) as error:
            first = str(error).splitlines()[0]
            raise UserError(f"device {device!r} cannot be used: {first}; use cpu") from None
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


def _inference(steps: Iterator[list[Finished]]) -> Iterator[list[Finished]]:
    """Run each step in inference mode, and the caller's code between them outside of it."""
    while True:
        with torch.inference_mode():
            finished = next(steps, None)
        if finished is None:
            return
        yield finished
