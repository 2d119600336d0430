"""A peer's server for the length of a measurement: started, timed until its first answer, and gone afterwards."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.client import Endpoint
from benchmarks.peers.meter import family

MODEL_NAME = "smol"
"""What the model is called at every peer that lets one choose."""
_POLL_S = 0.1
_ANSWER_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 30.0
_CHILDREN_TIMEOUT_S = 1.0
_TAIL_LINES = 20


@dataclass(frozen=True)
class Launch:
    """How to start a server."""

    command: Sequence[str | Path]
    port: int
    environment: Mapping[str, str] = field(default_factory=dict)
    model: str = MODEL_NAME
    """The name requests must carry."""
    takes_ignore_eos: bool = True
    """Whether requests may ask for answers of full length; a server that refuses that gets requests without."""
    folder: Path | None = None
    """Where the command runs."""

    @property
    def endpoint(self) -> Endpoint:
        """Where requests go, each on a connection of its own: llama-server closes its connections unannounced."""
        url = f"http://127.0.0.1:{self.port}/v1"
        return Endpoint(url, self.model, ignore_eos=self.takes_ignore_eos, keeps_connections=False)


@dataclass(frozen=True)
class RunningServer:
    """A server that has answered."""

    endpoint: Endpoint
    root: psutil.Process
    start_s: float
    """From starting the process to the first answered completion."""


class DidNotStart(Exception):
    """The server ended, or did not answer in time; says its last words."""


@contextlib.contextmanager
def running(launch: Launch, log: Path, timeout_s: float) -> Iterator[RunningServer]:
    """Start the server and yield it when it has answered; no process of it is left when the block ends.

    Raises DidNotStart.
    """
    started_s = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(word) for word in launch.command],
            cwd=launch.folder,
            env={**os.environ, **launch.environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
    try:
        _await_answer(launch, process, started_s + timeout_s, log)
        start_s = round(time.perf_counter() - started_s, 2)
        yield RunningServer(launch.endpoint, psutil.Process(process.pid), start_s)
    finally:
        _stop(process)


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _await_answer(launch: Launch, process: subprocess.Popen[bytes], deadline_s: float, log: Path) -> None:
    while process.poll() is None and time.perf_counter() < deadline_s:
        if _answers(launch):
            return
        time.sleep(_POLL_S)
    how = "took too long" if process.poll() is None else f"ended with {process.returncode}"
    tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
    raise DidNotStart("\n".join([how, *tail]))


def _answers(launch: Launch) -> bool:
    body = {"model": launch.model, "prompt": " time", "max_tokens": 2, "temperature": 0}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(launch.endpoint.url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=_ANSWER_TIMEOUT_S) as answer:
            return answer.status == 200
    except OSError:
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the server to end, then kill what is left of its tree."""
    members: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        members = family(psutil.Process(process.pid))
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_TIMEOUT_S)
    # A server that ended in order needs a moment for its children too.
    _, alive = psutil.wait_procs(members, timeout=_CHILDREN_TIMEOUT_S)
    for member in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(alive, timeout=5)
