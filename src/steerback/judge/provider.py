"""One question to one language model, through inspect-ai's model names."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from steerback.errors import UserError, nearest
from steerback.judge.parse import BadAnswer
from steerback.judge.secrets import hide_known, redact

R = TypeVar("R")

PROVIDERS = (
    *("anthropic", "azureai", "bedrock", "cloudflare", "deepseek", "fireworks", "google", "grok"),
    *("groq", "mistral", "mockllm", "ollama", "openai", "openai-api", "openrouter", "perplexity"),
    *("sambanova", "sglang", "together", "vllm"),
)
"""Common first parts of model names, for hints. inspect-ai decides which there are."""
INSTEAD = "set that up, or name another judge (exact, self, hf:MODEL, embed)"
_LONGEST = 200
_MARKUP = re.compile(r"\[/?(?:bold|blue|red|italic)\]")


class CallFailed(Exception):  # noqa: N818 - an event that is handled, not a fault of the program
    """A call brought no answer. The message is one line without keys."""

    def __init__(self, why: str, *, again: bool, hint: float | None = None) -> None:
        super().__init__(why)
        self.again = again
        """Whether another try may help: rate limits, server errors, timeouts."""
        self.hint = hint
        """Seconds that the server asks to wait."""


@dataclass(frozen=True)
class Address:
    """Which model is asked, and how."""

    model: str
    """inspect-ai name such as anthropic/claude-haiku-4-5 or openai-api/local/my-model."""
    base_url: str | None = None
    temperature: float | None = 0.0
    """None leaves it to the provider: some models take none."""
    max_tokens: int = 2048
    """Longest answer, reasoning included."""
    timeout: float = 120.0
    """Seconds that one call may take."""
    connections: int = 8


class Provider:
    """An open model: `async with Provider(address) as p: await p.ask(...)`, in one event loop."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._model: Any = None

    async def __aenter__(self) -> Provider:
        self._model = _open(self.address)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._model.__aexit__(kind, error, trace)

    async def ask(self, prompt: str) -> str:
        """The answer's text, keys hidden; "" when the model said nothing. Raises CallFailed, or
        BadAnswer when a content filter refused: that says something about the response, not about
        the line."""
        try:
            call = self._model.generate(prompt)
            output = await asyncio.wait_for(call, self.address.timeout)
        except asyncio.TimeoutError:
            raise CallFailed(f"no answer within {self.address.timeout:g} s", again=True) from None
        except Exception as error:  # every provider's SDK raises errors of its own
            raise self._failed(_cause(error)) from None
        if not output.choices:
            return ""
        if output.stop_reason == "content_filter":
            raise BadAnswer("the provider's content filter refused to answer")
        return hide_known(str(output.completion))

    def _failed(self, error: BaseException) -> CallFailed:
        hint = getattr(self._model.api.should_retry(error), "retry_after", None)
        again = isinstance(error, OSError) or bool(self._model.should_retry(error))
        return CallFailed(one_line(error), again=again, hint=hint)


def check(address: Address) -> None:
    """Open the model and close it again. Raises UserError as opening does."""

    async def once() -> None:
        async with Provider(address):
            pass

    run(once())


def run(work: Coroutine[Any, Any, R]) -> R:
    """Runs to the end, in a notebook's cell (where a loop is running already) too."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def _open(address: Address) -> Any:
    config_of, get_model = _inspect(address.model)
    config = config_of(
        temperature=address.temperature,
        max_tokens=address.max_tokens,
        max_connections=address.connections,
        max_retries=0,
    )
    try:
        model = get_model(address.model, config=config, base_url=address.base_url, memoize=False)
    except ValueError as error:
        name = address.model.split("/")[0]
        hint = nearest(name, PROVIDERS)
        raise UserError(f"judge {address.model}: {_plain(error)} {hint}") from None
    except Exception as error:  # a missing key or SDK: the provider's own words name it
        raise UserError(f"judge {address.model}: {_plain(error)}; {INSTEAD}") from None
    # Some SDKs try again by themselves, past the cap that is counted here.
    client: Any = getattr(model.api, "client", None)
    if hasattr(client, "max_retries"):
        client.max_retries = 0
    return model


def _inspect(model: str) -> tuple[Any, Any]:
    try:
        from inspect_ai.model import GenerateConfig, get_model
    except ImportError:
        raise UserError(
            f"judge {model} needs inspect-ai; run: pip install 'steerback[judge]'"
        ) from None
    return GenerateConfig, get_model


def _plain(error: BaseException) -> str:
    """What inspect-ai says about a model that it cannot open, without its markup."""
    words = " ".join(_MARKUP.sub("", redact(str(error))).split())
    return words.removeprefix("ERROR: ") or type(error).__name__


def _cause(error: BaseException) -> BaseException:
    """What went wrong inside the wrapper of a retry loop."""
    attempt = getattr(error, "last_attempt", None)
    inner = attempt.exception() if attempt is not None else None
    return inner or error


def one_line(error: BaseException) -> str:
    """An error's class and first words, keys hidden."""
    said = getattr(error, "provider_message", None) or str(error)
    words = " ".join(redact(str(said)).split())
    if len(words) > _LONGEST:
        words = words[: _LONGEST - 3] + "..."
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
