"""Judges by name: `exact`, `self`, `hf:MODEL`, `embed`, `embed:MODEL`, or PROVIDER/MODEL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from steerback.engine.base import Engine
from steerback.errors import UserError, nearest
from steerback.judge import concrete
from steerback.judge.base import Judge
from steerback.judge.cache import AnswerCache
from steerback.judge.dry import DryJudge
from steerback.judge.embed import EmbedJudge, SentenceTransformer
from steerback.judge.exact import ExactJudge
from steerback.judge.llm import LlmJudge
from steerback.judge.local import ANSWER_TOKENS, EngineJudge
from steerback.judge.model import ModelJudge
from steerback.judge.prompt import Prompt
from steerback.judge.provider import Address, check
from steerback.judge.verify import Mode

KINDS = ("embed", "embed:MODEL", "exact", "hf:MODEL", "self", "PROVIDER/MODEL")
_EXAMPLES = "or a model such as hf:google/gemma-2-9b-it or anthropic/claude-haiku-4-5"


@dataclass(frozen=True)
class Context:
    """What judges are made with; each takes what concerns it."""

    engine: Engine | None = None
    """The loaded model, for `self`."""
    labels: Mapping[str, str] | None = None
    """What each trial is steered towards, by trial key, for `embed`."""
    prompt: str | Path | None = None
    """A judge prompt instead of the packaged one."""
    mode: Mode = "verify"
    max_tokens: int | None = None
    """Longest answer; None takes the default of the kind of judge."""
    cache: str | Path | None = None
    """File that keeps the answers of a provider's model; None keeps them in memory only."""
    cap: int | None = None
    """Most calls to a provider's model."""
    base_url: str | None = None
    temperature: float | None = 0.0
    """None leaves it to the provider: some models take none."""
    connections: int = 8
    timeout: float = 120.0
    """Seconds that one call may take."""
    check: bool = True
    """Open a provider's model at once, so that a missing key shows before anything is generated."""
    device: str | None = None
    dtype: str = "auto"
    slots: int = 64
    """Rows that `hf:MODEL` generates at once."""


def make_judge(spec: str, **context: object) -> Judge:
    """The judge of that name. `context`: fields of `Context`. Raises UserError for an unknown name,
    or when something that the judge needs is missing."""
    given = replace(Context(), **context)  # type: ignore[arg-type]
    check_prompt(given.prompt)
    kind, _, model = spec.partition(":")
    if spec == "exact":
        return ExactJudge()
    if spec == "dry":
        return DryJudge()
    if spec == "self":
        return _self(given)
    if kind == "hf" and model:
        return _hf(model, given)
    if kind == "embed" and (spec == kind or model):
        return _embed(model, given)
    if "/" in spec:
        return _provider(spec, given)
    raise UserError(f"unknown judge {spec!r}; {nearest(spec, KINDS)} {_EXAMPLES}")


def runs_a_model(spec: str) -> bool:
    """Whether the judge generates on this machine, so that it waits for the run's own model."""
    return spec == "self" or spec.startswith("hf:")


def check_prompt(prompt: str | Path | None) -> None:
    """Raises UserError for a file that is no judge prompt, whether or not the judge would read it."""
    if prompt is not None:
        Prompt.load(prompt)


def make_rater(spec: str, **context: object) -> Callable[[Sequence[str]], list[float | None]]:
    """What rates the concreteness of labels: `words` (offline), or a judge that is a language model."""
    if spec == "words":
        return lambda labels: [concrete.rate_by_words(label) for label in labels]
    judge = make_judge(spec, **context)
    if not isinstance(judge, ModelJudge):
        raise UserError(f"judge {spec!r} cannot rate labels; use 'words' {_EXAMPLES}")
    return partial(concrete.rate_labels, asker=judge.asker)


def _self(given: Context) -> Judge:
    if given.engine is None:
        raise UserError("judge 'self' needs the loaded model; give one, or use hf:MODEL")
    return _through(given.engine, f"self:{given.engine.name}", given, shares_engine=True)


def _hf(model: str, given: Context) -> Judge:
    from steerback.engine.hf import HFEngine

    engine = HFEngine.load(model, device=given.device, dtype=given.dtype, slots=given.slots)
    return _through(engine, f"hf:{model}", given, shares_engine=False)


def _through(engine: Engine, label: str, given: Context, shares_engine: bool) -> Judge:
    return EngineJudge(
        engine,
        label=label,
        prompt=Prompt.load(given.prompt),
        mode=given.mode,
        max_tokens=given.max_tokens or ANSWER_TOKENS,
        temperature=given.temperature or 0.0,
        shares_engine=shares_engine,
    )


def _embed(model: str, given: Context) -> Judge:
    if given.labels is None:
        raise UserError("judge 'embed' needs the labels of what trials are steered towards")
    return EmbedJudge(given.labels, SentenceTransformer(model) if model else None)


def _provider(spec: str, given: Context) -> Judge:
    address = Address(
        spec,
        base_url=given.base_url,
        temperature=given.temperature,
        timeout=given.timeout,
        connections=given.connections,
    )
    if given.max_tokens:
        address = replace(address, max_tokens=given.max_tokens)
    if given.check:
        check(address)
    return LlmJudge(
        address,
        prompt=Prompt.load(given.prompt),
        mode=given.mode,
        cache=None if given.cache is None else AnswerCache(given.cache),
        cap=given.cap,
    )
