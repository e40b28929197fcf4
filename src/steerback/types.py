"""Frozen records and their canonical keys. Imports nothing of ours but the error.

A record is plain data: it can be written as JSON, read back equal, and hashed. `Trial.key` is the
primary key of everything that is stored about a trial.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steerback.errors import UserError

Kind = Literal["add", "clamp", "clamp-after"]
Unit = Literal["raw", "resid"]
Status = Literal["ok", "unscored", "error"]
FinishReason = Literal["eos", "stop", "length", "unknown"]
"""unknown: of a response that was imported, where nobody noted it."""
CALIBRATION = "calibration"
"""Protocol of the trials that find strengths; made at other strengths, they belong to no rate."""


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces. Raises ValueError on NaN or infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def stable_hash(value: Any) -> str:
    """32 hex digits of the BLAKE2b hash of the canonical JSON: same on every machine and version."""
    return hashlib.blake2b(canonical_json(value).encode(), digest_size=16).hexdigest()


def derive_seed(seed: int, *parts: str | int | float) -> int:
    """A seed in [0, 2**63) for one purpose, from the run's seed and the names of that purpose."""
    return int(stable_hash([seed, *parts]), 16) % 2**63


@dataclass(frozen=True)
class Intervention:
    """One edit of the residual stream at the output of one decoder layer.

    `add` adds `value` times the direction; `clamp` sets the latent's activation to `value`, read on
    the stream as it arrives (before any addition at the same layer); `clamp-after` reads it after those.
    """

    kind: Kind
    source: str
    """Name under which the engine knows an SAE or a vector set."""
    index: int
    """Latent (row of W_dec) or vector, 0-based."""
    value: float
    layer: int
    """0-based decoder layer whose output is edited."""
    unit: Unit = "raw"
    """raw: multiples of the direction as stored (the paper's unit). resid: the added vector's norm in
    units of the median residual-stream norm at the layer (add only)."""
    positions: str = "generated"
    """generated: tokens of the response (a prefill included); all: the prompt too; from:N: response
    tokens from the N-th (0-based) on."""

    def __post_init__(self) -> None:
        where = f"intervention on {self.source}:{self.index}"
        if self.kind not in ("add", "clamp", "clamp-after"):
            raise UserError(f"{where}: kind is {self.kind!r}; use 'add', 'clamp' or 'clamp-after'")
        if self.unit not in ("raw", "resid"):
            raise UserError(f"{where}: unit is {self.unit!r}; use 'raw' or 'resid'")
        if self.unit == "resid" and self.kind != "add":
            raise UserError(f"{where}: unit 'resid' has no meaning for a clamp; use 'raw'")
        if not math.isfinite(self.value):
            raise UserError(f"{where}: value is {self.value}; use a finite number")
        if self.index < 0 or self.layer < 0:
            raise UserError(f"{where}: index and layer count from 0; got layer {self.layer}")
        _ = self.start

    @cached_property
    def start(self) -> int | None:
        """First response token that is edited; None when the prompt is edited too."""
        if self.positions == "all":
            return None
        if self.positions == "generated":
            return 0
        head, _, n = self.positions.partition(":")
        if head == "from" and n.isascii() and n.isdigit():
            return int(n)
        raise UserError(
            f"intervention on {self.source}:{self.index}: positions is {self.positions!r}; "
            "use 'generated', 'all' or 'from:N' with N >= 0"
        )


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; every setting has the Hugging Face meaning."""

    temperature: float = 0.6
    """0 is greedy decoding."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps the whole vocabulary."""
    repetition_penalty: float = 1.1
    """Applied to tokens of the prompt and of the response; 1 is none."""
    max_new_tokens: int = 512
    stop: tuple[str, ...] = ()
    """Strings that end the response; the text is cut before them."""

    def __post_init__(self) -> None:
        checks = (
            (0 <= self.temperature < math.inf, "temperature", "0 (greedy) or more"),
            (0 < self.top_p <= 1, "top_p", "in (0, 1]"),
            (self.top_k >= 0, "top_k", "0 (off) or more"),
            (0 < self.repetition_penalty < math.inf, "repetition_penalty", "above 0"),
            (self.max_new_tokens >= 1, "max_new_tokens", "1 or more"),
            (all(self.stop), "stop", "strings that are not empty"),
        )
        for good, name, want in checks:
            if not good:
                raise UserError(f"sampling: {name} is {getattr(self, name)!r}; it must be {want}")


@dataclass(frozen=True)
class Message:
    role: Literal["system", "user", "assistant"]
    content: str


COPY = "copy "
"""Begins the variant of a trial that stands in an imported file more than once."""


@dataclass(frozen=True)
class Trial:
    """One generation to make, and all that determines it."""

    protocol: str
    arm: str
    model: str
    question: str
    """What the judge sees."""
    messages: tuple[Message, ...]
    """What the model sees (a meta-prompt stands here only)."""
    sampling: Sampling
    seed: int
    interventions: tuple[Intervention, ...] = ()
    prefill: str = ""
    """Text of the response that the model continues; part of the response, not of its tokens drawn."""
    variant: tuple[str, ...] = ()
    """What else sets it apart: ways of the published code that are in force (engine/variants.py), or
    which of several equal trials of an imported file it is."""

    def record(self) -> dict[str, Any]:
        """Everything above as JSON values; a variant only where there is one."""
        fields = asdict(self)
        if not self.variant:
            del fields["variant"]
        return fields

    @cached_property
    def key(self) -> str:
        """Stable hash of the record."""
        return stable_hash(self.record())

    @property
    def steered_by(self) -> Intervention | None:
        """The first added direction: what the trial is steered with."""
        return next((i for i in self.interventions if i.kind == "add"), None)

    @property
    def cluster(self) -> str:
        """Trials of one direction are one cluster; without a direction, trials of one question."""
        add = self.steered_by
        return f"{add.source}:{add.index}" if add else f"question:{self.question}"


@dataclass(frozen=True)
class Trace:
    """Activations of watched latents, one row per generated token."""

    source: str
    layer: int
    latents: tuple[int, ...]
    values: NDArray[np.float32]
    """[n_tokens, n_latents], read on the residual stream that leaves the layer."""


@dataclass(frozen=True)
class Generation:
    trial_key: str
    prompt_ids: tuple[int, ...]
    """Prompt and prefill, as the model saw them."""
    token_ids: tuple[int, ...]
    """Tokens drawn, the end token included."""
    text: str
    """The whole response: prefill and what was drawn, special tokens left out."""
    finish_reason: FinishReason
    trace: Trace | None = None


@dataclass(frozen=True)
class Attempt:
    """text[start:end] of the response answers the question with `score` of 100."""

    start: int
    end: int
    score: float | None
    """0-100, or None when this attempt could not be scored."""


@dataclass(frozen=True)
class Verdict:
    """What one judge says of one response. `unscored` and `error` are never a score of 0."""

    trial_key: str
    judge: str
    attempts: tuple[Attempt, ...]
    status: Status
    raw: str = ""
    """The judge's own words, or why there is no score."""

    @property
    def scores(self) -> tuple[float, ...]:
        return tuple(a.score for a in self.attempts if a.score is not None)


@dataclass(frozen=True)
class Calibration:
    """The strength at which a direction brings first-attempt scores to the target."""

    key: str
    """Hash of all that it depends on: direction, model, target, judge, sampling, prompts, search."""
    direction: str
    strength: float
    posterior_sd: float
    achieved: float | None
    """Mean first-attempt score at `strength` on fresh prompts and seeds; None if nothing was scored."""
    n: int
    """Generations behind `achieved`."""
    reached: bool
    """Whether the target was reached inside the range; if not, the rule leaves the direction out."""


@dataclass(frozen=True)
class Rate:
    """A proportion with its interval."""

    k: int
    n: int
    clusters: int
    missing: int
    """Trials left out because they have no score."""
    low: float
    high: float
    method: str

    @property
    def rate(self) -> float:
        return self.k / self.n if self.n else math.nan
