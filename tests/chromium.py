"""A headless Chromium for tests, spoken to over a pipe. No page may reach the network."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
    "--hide-scrollbars",
)


def binary() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser")


def _start(path: str, profile: Path) -> tuple[subprocess.Popen[bytes], int, int]:
    """The browser, and where to read its answers and write commands: it uses descriptors 4 and 3."""
    commands, write = os.pipe()
    read, answers = os.pipe()
    # away from 3 and 4, which they take the place of in the child
    theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (commands, answers)]

    def place() -> None:
        os.dup2(theirs[0], 3)
        os.dup2(theirs[1], 4)

    process = subprocess.Popen(
        [path, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        preexec_fn=place,
        close_fds=False,  # only what is marked as inheritable is handed on: 0 to 4
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for fd in (commands, answers, *theirs):
        os.close(fd)
    return process, read, write


class Page:
    """One page; `problems` collects uncaught errors, console errors and requests off the machine."""

    def __init__(self, profile: Path) -> None:
        self.problems: list[str] = []
        self.count = 0
        path = binary()
        assert path is not None
        self._process, self._in, self._out = _start(path, profile)
        self._buffer = b""
        self._session: str | None = None
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(t["targetId"] for t in targets if t["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: object) -> None:
        self._session = None
        self.call("Browser.close")
        self._process.wait(10)

    def call(self, method: str, **params: Any) -> Any:
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]
            self._notice(answer)

    def wait(self, event: str) -> None:
        while True:
            message = self._read()
            self._notice(message)
            if message.get("method") == event:
                return

    def _read(self) -> Any:
        while b"\0" not in self._buffer:
            more = os.read(self._in, 1 << 20)
            assert more, "the browser has gone"
            self._buffer += more
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)

    def _notice(self, message: Any) -> None:
        kind, params = message.get("method", ""), message.get("params", {})
        url = params.get("request", {}).get("url", "")
        wrong = (
            kind == "Runtime.exceptionThrown"
            or (kind == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"))
            or (kind == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"))
            or (kind == "Network.requestWillBeSent" and not url.startswith(("file:", "data:")))
            or kind == "Page.javascriptDialogOpening"
        )
        if wrong:
            self.problems.append(json.dumps(params)[:500])

    def open(self, file: Path, width: int, height: int = 900, dark: bool = False) -> None:
        """Load a file in a window `width` pixels wide and wait until it is there."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=file.resolve().as_uri())
        self.wait("Page.loadEventFired")

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression, as JSON."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")
