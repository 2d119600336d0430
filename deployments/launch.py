"""`python -m deployments.launch CONFIG`: serve a Serve config, show how far it is, say how to call it.

Does what `serve run CONFIG` does (the command to use under a process manager), and adds what a person at a terminal
wants: one line of progress, the URL, a curl line to copy, and an end that leaves no process behind.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

import msgspec
import psutil

from core.config import read_yaml
from core.errors import InvalidConfig
from deployments.gateway.readiness import ReadinessReport

EXIT_PROBLEMS = 2
_POLL_S = 0.5
_STOP_TIMEOUT_S = 120.0
_TAIL_LINES = 20


class Server(NamedTuple):
    """The child process that serves, and where its output goes."""

    process: subprocess.Popen[bytes]
    log_path: Path


class StatusLine:
    """One console line that is written over while it changes; one line per change where there is no terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown = ""

    def show(self, text: str) -> None:
        """Replace the line by `text`."""
        if text == self._shown:
            return
        if self._stream.isatty():
            width = shutil.get_terminal_size().columns - 1
            self._stream.write("\r" + text[:width].ljust(min(width, len(self._shown))))
        else:
            self._stream.write(text + "\n")
        self._stream.flush()
        self._shown = text

    def end(self) -> None:
        """Leave what is shown and go to the next line."""
        if self._shown and self._stream.isatty():
            self._stream.write("\n")
        self._shown = ""


def main(argv: list[str]) -> int:
    """Serve the config until interrupted; return the exit code: 0, or 2 if it cannot be served."""
    if len(argv) != 1:
        sys.stderr.write("usage: python -m deployments.launch CONFIG\n")
        return EXIT_PROBLEMS
    config_path = Path(argv[0])
    # SIGTERM, as process managers send it, ends the same way as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with _serving(config_path) as server:
            return _attend(server, config_path)
    except InvalidConfig as error:
        sys.stderr.write(f"{error.message}\n")
        return EXIT_PROBLEMS
    except KeyboardInterrupt:
        return 0


def _attend(server: Server, config_path: Path) -> int:
    """Show progress until ready, then wait for the end of the server; return its exit code."""
    started_s = time.monotonic()
    url = base_url(config_path)
    line = StatusLine(sys.stdout)
    line.show("starting Ray Serve")
    while server.process.poll() is None:
        report = _ask(f"{url}/readyz")
        if report is not None:
            line.show(describe_progress(report))
        if report is not None and report.is_ready:
            line.show(f"ready after {time.monotonic() - started_s:.0f} s")
            line.end()
            sys.stdout.write(how_to_call(url, config_path, server.log_path))
            sys.stdout.flush()
            return _wait(server)
        time.sleep(_POLL_S)
    line.end()
    return _explain_end(server)


def _wait(server: Server) -> int:
    server.process.wait()
    return _explain_end(server)


def _explain_end(server: Server) -> int:
    lines = server.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
    sys.stderr.write("\n".join(["the server ended; its last words:", *lines[-_TAIL_LINES:]]) + "\n")
    sys.stderr.write(f"all of its output is in {server.log_path}\n")
    return EXIT_PROBLEMS


@contextlib.contextmanager
def _serving(config_path: Path) -> Iterator[Server]:
    """Run `serve run` as a child until the block ends; no process of it is left after that."""
    fd, name = tempfile.mkstemp(prefix="eagleray-", suffix=".log")
    with os.fdopen(fd, "wb") as log_file:
        process = subprocess.Popen(
            [sys.executable, "-m", "deployments.serve_run", str(config_path)],
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=subprocess.STDOUT,
            # A group of its own: Ctrl-C reaches us alone, and we stop the child in order.
            process_group=0,
        )
    try:
        yield Server(process, Path(name))
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the server to end, wait until it has or until interrupted again, and kill what is left of it."""
    family: list[psutil.Process] = []
    with contextlib.suppress(ProcessLookupError, KeyboardInterrupt, subprocess.TimeoutExpired):
        family = _family(process.pid)
        if process.poll() is None:
            sys.stdout.write("\nstopping: open streams may finish first (Ctrl-C again to end them)\n")
        # Not SIGINT: a shell that started us in the background has all of us ignore it.
        process.send_signal(signal.SIGTERM)
        process.wait(_STOP_TIMEOUT_S)
    # Nothing may keep the rest from being done.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    family = family or _family(process.pid)
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=5)


def _family(pid: int) -> list[psutil.Process]:
    """Return a process and its descendants; empty if it is gone. psutil recognises a pid that was given away since."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    return []


def base_url(config_path: Path) -> str:
    """Return where the config says HTTP is served."""
    options = read_yaml(config_path).get("http_options")
    # Whatever else it is, the server refuses it and says why.
    options = options if isinstance(options, dict) else {}
    host, port = options.get("host", "127.0.0.1"), options.get("port", 8000)
    return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"


def _ask(url: str) -> ReadinessReport | None:
    """Return what `/readyz` says, None while nothing of ours answers."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            body = answer.read()
    except urllib.error.HTTPError as error:
        body = error.read()
    except OSError:
        return None
    try:
        return msgspec.json.decode(body, type=ReadinessReport)
    except msgspec.DecodeError:
        return None  # Serve's proxy answers before the gateway does


def describe_progress(report: ReadinessReport) -> str:
    """Return one line: each model that is not ready, each of its ranks, or why it cannot be."""
    parts: list[str] = []
    for model in report.models:
        ranks = [
            f"rank {p.rank}: {p.phase} {p.percent} %" + (f" {p.detail}" if p.detail else "")
            for group in model.groups
            for p in group.progress
        ]
        errors = [group.error for group in model.groups if group.error]
        if not model.is_ready:
            parts.append(f"{model.model}: {', '.join(ranks + errors) or model.reason}")
    return " | ".join(parts)


def how_to_call(url: str, config_path: Path, log_path: Path) -> str:
    """Return the URL, a curl line for the first model, where the log is, and how to stop."""
    names = [a["args"]["name"] for a in read_yaml(config_path)["applications"] if "name" in a.get("args", {})]
    body = {
        "model": names[0] if names else "MODEL",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
    }
    curl = f"curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{json.dumps(body)}'"
    return f"\n  OpenAI API   {url}/v1\n  log          {log_path}\n  stop         Ctrl-C\n\n{curl}\n\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
