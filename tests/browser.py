"""A real browser for tests: headless Chromium by the DevTools protocol over a pipe, which needs no library and no port."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PATIENCE = 60.0
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


def require_chromium() -> str:
    """The browser's path. Where it is missing it is installed by apt, as root; else one sentence says what to do."""
    names = ("chromium", "chromium-browser", "google-chrome")
    if found := next(filter(None, map(shutil.which, names)), None):
        return found
    if os.geteuid() == 0 and shutil.which("apt-get"):
        for command in ("update", "install --no-install-recommends --yes chromium"):
            subprocess.run(
                ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=600", *command.split()],  # two suites may want it at once
                check=False, stdout=subprocess.DEVNULL, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
            )  # fmt: skip
    found = shutil.which("chromium")
    assert found, "The tests of the pages need a browser: install Chromium (apt-get install chromium)."
    return found


@contextmanager
def chromium(directory: Path) -> Iterator[Browser]:
    """A browser with its profile in ``directory``, ended with the block."""
    commands, events = os.pipe(), os.pipe()
    ends = commands[0], events[1]  # Chromium reads commands from descriptor 3 and writes to 4
    process = subprocess.Popen(
        [
            "bash",
            "-c",
            f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}',
            "bash",
            require_chromium(),
            *FLAGS,
            f"--user-data-dir={directory}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=ends,
    )
    os.close(commands[0])
    os.close(events[1])
    try:
        yield Browser(commands[1], events[0])
    finally:
        process.terminate()
        process.wait()
        os.close(commands[1])
        os.close(events[0])


class Browser:
    """One tab. ``errors`` has what the console and the log complain of, ``requests`` every address that was asked for."""

    def __init__(self, commands: int, events: int) -> None:
        self._commands, self._events = commands, events
        self._buffer, self._count, self._session = b"", 0, ""
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._trace: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def open(self, url: str, width: int = 1200, dark: bool = False, media: str = "screen", wait: str = "true") -> None:
        """Load the page with a window of this width, and wait until the expression ``wait`` is true in it."""
        self.errors.clear()
        self.requests.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self._loaded = False
        self.call("Page.navigate", url=url)
        deadline = time.monotonic() + PATIENCE
        while not self._loaded:
            self._take(self._next(deadline))
        while not self.evaluate(wait):
            assert time.monotonic() < deadline, f"{url} never came to: {wait}"

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page; of a promise, what it comes to."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str, until: str = "true") -> None:
        """A key, as the keyboard sends it to whatever has the focus; it is held until the expression ``until`` is true."""
        code = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Escape": 27, "Enter": 13}[key]
        typed = {"type": "keyDown", "text": "\r"} if key == "Enter" else {"type": "rawKeyDown"}
        self.call("Input.dispatchKeyEvent", **typed, key=key, code=key, windowsVirtualKeyCode=code)
        deadline = time.monotonic() + PATIENCE
        while not self.evaluate(until):
            assert time.monotonic() < deadline, f"{key} never brought: {until}"
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)

    def click(self, x: float, y: float) -> None:
        """The mouse comes to this place of the window, and is clicked."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, path: Path, whole: bool = True) -> None:
        found = self.call("Page.captureScreenshot", captureBeyondViewport=whole, **({"clip": self._all()} if whole else {}))
        path.write_bytes(base64.b64decode(found["data"]))

    def _all(self) -> dict[str, float]:
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}

    def trace(self) -> list[dict[str, Any]]:
        """What Tracing.start has recorded since."""
        self._trace, self._traced = [], False
        self.call("Tracing.end")
        deadline = time.monotonic() + PATIENCE
        while not self._traced:
            self._take(self._next(deadline))
        return self._trace

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE
        while True:
            answer = self._next(deadline)
            if answer.get("id") == self._count:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self._take(answer)

    def _take(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        match event.get("method"):
            case "Tracing.dataCollected":
                self._trace += params["value"]
            case "Tracing.tracingComplete":
                self._traced = True
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Runtime.exceptionThrown":
                self.errors.append(str(params["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.errors.append(str(params["args"]))
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                self.errors.append(params["entry"]["text"])

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self._events], [], [], left)[0], "Chromium does not answer."
            read = os.read(self._events, 1 << 20)
            assert read, "Chromium has ended."
            self._buffer += read
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


def in_a_pane(page: Path, directory: Path) -> Path:
    """A page that shows ``page`` as Kubeflow Pipelines does (frontend/src/components/viewers/HTMLViewer.tsx): by srcdoc, in a sandbox."""
    text = page.read_text(encoding="utf-8").replace("&", "&amp;").replace('"', "&quot;")
    shown = directory / "pane.html"
    frame = f'<iframe sandbox="allow-scripts" style="width: 100%; min-height: 600px; border: 0" srcdoc="{text}"></iframe>'
    shown.write_text(f"<!DOCTYPE html><meta charset=utf-8><body style='margin: 0'>{frame}", encoding="utf-8")
    return shown


@contextmanager
def sandboxed(page: Path) -> Iterator[str]:
    """The address of the page as a frame with sandbox="allow-scripts" has it: of no origin, without storage."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/page.html"
            self.send_response(200 if found else 204)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Security-Policy", "sandbox allow-scripts")
            self.end_headers()
            self.wfile.write(page.read_bytes() if found else b"")

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/page.html"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
