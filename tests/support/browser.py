"""A headless Chromium, driven over its DevTools protocol."""

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = "headless Chromium is not installed; `apt-get install chromium` brings it"
START_TIMEOUT_S = 60.0
CALL_TIMEOUT_S = 30.0

_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)


class Page:
    """One tab. Everything it logs as an error, and every request it made, is kept."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self.errors: list[str] = []
        self.requested: list[str] = []
        for domain in ("Runtime", "Log", "Network", "Page"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Return what a command of the protocol answers."""
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        deadline_s = time.monotonic() + CALL_TIMEOUT_S
        while True:
            message = json.loads(self._socket.recv(max(0.1, deadline_s - time.monotonic())))
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self._note(message)

    def open(self, url: str) -> None:
        """Go to `url`; returns before it is loaded."""
        self.call("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """Return the value of an expression, or of a promise, in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, f"{script}: {result['exceptionDetails']}"
        return result["result"].get("value")

    def text(self, selector: str) -> str:
        """Return the visible text of the first element that fits, empty if none does."""
        return self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def wait_for(self, script: str, timeout_s: float = 20.0) -> None:
        """Return when an expression is true; fails after `timeout_s`."""
        deadline_s = time.monotonic() + timeout_s
        # An element would arrive here as an empty object.
        while not self.run(f"Boolean({script})"):
            assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s: {script}; errors: {self.errors}"
            time.sleep(0.1)

    def look(self, width: int, height: int, *, is_dark: bool = False, is_phone: bool = False, scale: float = 1) -> None:
        """Be a screen of this size."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=is_phone
        )

    def screenshot(self, path: Path, is_whole: bool = False) -> None:
        """Write what is to be seen, or the page down to its end, as PNG."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=is_whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def _note(self, message: dict[str, Any]) -> None:
        match message:
            case {"method": "Runtime.exceptionThrown", "params": {"exceptionDetails": details}}:
                self.errors.append(details.get("exception", {}).get("description", details["text"]))
            case {"method": "Log.entryAdded", "params": {"entry": {"level": "error", "text": text, **rest}}}:
                self.errors.append(f"{text} {rest.get('url', '')}")
            case {"method": "Runtime.consoleAPICalled", "params": {"type": "error" | "assert", "args": args}}:
                self.errors.append(" ".join(str(arg.get("value", arg.get("description"))) for arg in args))
            case {"method": "Network.requestWillBeSent", "params": {"request": {"url": url}}}:
                self.requested.append(url)
            case _:
                pass


@contextlib.contextmanager
def browser_page() -> Iterator[Page]:
    """Yield an empty page of a browser of its own, with a profile of its own; both are gone afterwards."""
    assert CHROMIUM is not None, MISSING
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        environment = {**os.environ, "HOME": profile, "XDG_RUNTIME_DIR": profile}
        command = [CHROMIUM, *_OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        try:
            address = _page_address(Path(profile), process)
            # Nobody reads between two calls: neither a full queue nor an unanswered ping is a fault.
            with connect(address, max_size=2**26, max_queue=None, ping_interval=None, proxy=None) as socket:
                yield Page(socket)
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)


def _page_address(profile: Path, process: subprocess.Popen[bytes]) -> str:
    """Return the websocket address of the browser's only tab, once there is one."""
    port_file, deadline_s = profile / "DevToolsActivePort", time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        assert process.poll() is None, f"Chromium ended with {process.returncode}"
        with contextlib.suppress(OSError, ValueError, StopIteration):
            port = int(port_file.read_text().split()[0])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=5) as answer:
                tabs = json.loads(answer.read())
            return next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
        time.sleep(0.1)
    raise AssertionError(f"Chromium did not start within {START_TIMEOUT_S:g} s")
