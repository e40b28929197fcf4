"""A provider that fails in every way real ones do, behind inspect-ai and behind loopback HTTP.

What it is asked about is made by `responses`, so that it knows the truth: `truth(response)`.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from inspect_ai.model import (
    ChatMessage,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    StopReason,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from steerback.judge.base import Request

RESTARTS = (
    "Wait, that's not right. Let me start over.",
    "I apologize for the confusion, let me try again.",
    "Hold on, I got off track.",
    "Scratch that, I made a mistake.",
)
SUBJECTS = ("bread", "ships", "taxes", "gardens", "clocks", "bicycles", "violins", "maps")


def responses(n: int) -> list[Request]:
    """n requests whose responses differ; about half of them hold one or two restarts."""
    return [Request(f"trial-{i}", f"Explain {SUBJECTS[i % 8]}.", _response(i)) for i in range(n)]


def _response(number: int) -> str:
    rng = random.Random(number)
    parts = [_piece(rng, number)]
    again = range(rng.choice([0, 0, 1, 1, 2]))
    parts += [f"{rng.choice(RESTARTS)} {_piece(rng, number)}" for _ in again]
    return " ".join(parts)


def _piece(rng: random.Random, number: int) -> str:
    said = [f"Piece {number} is about “{rng.choice(SUBJECTS)}” and needs care" for _ in range(3)]
    return ". ".join(said) + "."


def truth(response: str) -> list[tuple[int, str, float]]:
    """(start, text, score) of each attempt, found without the code under test."""
    starts = sorted(
        {0} | {i for r in RESTARTS for i in range(len(response)) if response.startswith(r, i)}
    )
    ends = [*starts[1:], len(response)]
    return [
        (s, response[s:e], float(zlib.crc32(response[s:e].encode()) % 101))
        for s, e in zip(starts, ends, strict=True)
    ]


FAULTS = (
    *("429", "500", "slow", "reset", "empty", "truncated", "foreign", "invented"),
    *("150", "high", "prose", "echo", "refused"),
)


@dataclass
class Reply:
    """An answer, or a failure with a status; `delay` is in seconds, status 0 drops the line."""

    status: int
    text: str
    delay: float = 0.0
    refused: bool = False


@dataclass
class Faults:
    """Decides what comes back. `rate`: share of calls that go wrong. `key`: what "echo" betrays."""

    rate: float
    seed: int = 0
    only: tuple[str, ...] = FAULTS
    key: str = ""
    slow: float = 0.5
    calls: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    most_at_once: int = 0
    at_once: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, prompt: str) -> Reply:
        with self._lock:
            self.calls += 1
            rng = random.Random(f"{self.seed} {self.calls}")
            kind = rng.choice(self.only) if rng.random() < self.rate else "good"
            self.kinds[kind] += 1
        return self._reply(kind, prompt.rpartition("<response>\n")[2].partition("\n</response>")[0])

    def _reply(self, kind: str, response: str) -> Reply:
        attempts = [{"text": text.strip(), "score": score} for _, text, score in truth(response)]
        good = "It drifts.\n" + json.dumps({"attempts": attempts})
        failures = {
            "429": Reply(429, f"rate limit reached for {self.key}"),
            "500": Reply(500, "the server is overloaded"),
            "echo": Reply(401, f"Incorrect API key provided: {self.key}"),
            "reset": Reply(0, ""),
            "slow": Reply(200, good, self.slow),
            "empty": Reply(200, ""),
            "truncated": Reply(200, good[: len(good) * 2 // 3]),
            "refused": Reply(200, "I cannot help with that.", refused=True),
            "prose": Reply(200, f"I would say 90. My key is {self.key}."),
        }
        return failures.get(kind) or Reply(200, self._lie(kind, attempts))

    def _lie(self, kind: str, attempts: list[dict[str, Any]]) -> str:
        if kind == "foreign":
            attempts = [
                {**a, "text": f"Nobody wrote this about {n}"} for n, a in enumerate(attempts)
            ]
        elif kind == "invented":
            more = {"text": "Wait, let me correct that: use twice as much.", "score": 100}
            attempts = [*attempts, more]
        elif kind != "good":
            attempts[-1]["score"] = 150 if kind == "150" else kind
        return f"It drifts.\n```json\n{json.dumps({'attempts': attempts})}\n```"

    @contextmanager
    def counted(self) -> Iterator[None]:
        with self._lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            yield
        finally:
            with self._lock:
                self.at_once -= 1


# Behind inspect-ai, in this process

CURRENT: dict[str, Faults] = {}
"""Which faults a model name such as fake/NAME answers with."""


class HTTPError(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@modelapi(name="fake")
class FakeAPI(ModelAPI):
    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        faults = CURRENT[self.model_name]
        with faults.counted():
            reply = faults.reply(input[-1].text)
            await asyncio.sleep(reply.delay or 0.001)
        if reply.status == 0:
            raise ConnectionResetError("connection reset by peer")
        if reply.status != 200:
            raise HTTPError(reply.status, reply.text)
        reason: StopReason = "content_filter" if reply.refused else "stop"
        return ModelOutput.from_content(self.model_name, reply.text, reason)

    def should_retry(self, ex: Exception) -> bool:
        return isinstance(ex, HTTPError) and ex.status in (429, 500)


# Behind HTTP


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faults: Faults
    seen_keys: set[str]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen_keys.add(self.headers.get("Authorization", ""))
        with self.faults.counted():
            reply = self.faults.reply(body["messages"][-1]["content"])
            time.sleep(reply.delay or 0.001)
        if reply.status == 0:
            self.close_connection = True
            self.connection.close()
            return
        try:
            self._send(reply, body["model"])
        except OSError:
            self.close_connection = True

    def _send(self, reply: Reply, model: str) -> None:
        message = {"role": "assistant", "content": reply.text}
        reason = "content_filter" if reply.refused else "stop"
        choice = {"index": 0, "finish_reason": reason, "message": message}
        good = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": model,
            "choices": [choice],
        }
        error = {"error": {"message": reply.text, "type": "error", "code": reply.status}}
        data = json.dumps(good if reply.status == 200 else error).encode()
        self.send_response(reply.status)
        self.send_header("Content-Type", "application/json")
        if reply.status == 429:
            self.send_header("Retry-After", "7")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def served(faults: Faults) -> Iterator[tuple[str, set[str]]]:
    """An OpenAI-compatible server on loopback: its base URL, and the Authorization headers it saw."""
    seen: set[str] = set()
    handler = type("Handler", (_Handler,), {"faults": faults, "seen_keys": seen})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
