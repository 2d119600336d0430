"""A server for the length of a measurement, on free ports of this machine, and what its processes cost."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil
import yaml

from benchmarks.report import ROOT
from core.config import read_yaml

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 120.0

ROLES = {
    "ray::ProxyActor": "proxy",
    "ray::ServeReplica:gateway:": "gateway",
    "ray::ServeReplica:": "leader",
    "ray::RankActor": "rank",
}
"""What a process is, by the beginning of the title Ray gives it; everything else of ours is `ray`."""


@dataclass(frozen=True)
class Served:
    """A running server."""

    url: str
    """Without a path: the Serve proxy, or the gateway replica's own port."""
    root: psutil.Process

    def cpu_seconds(self) -> dict[str, float]:
        """Return the CPU seconds used so far, by role, summed over the living processes of each."""
        seconds: dict[str, float] = {}
        for process in [self.root, *self.root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                times, role = process.cpu_times(), role_of(process)
                seconds[role] = seconds.get(role, 0.0) + times.user + times.system
        return seconds


class Started(NamedTuple):
    """A server that was told to start."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def last_words(self) -> str:
        """Return the end of its log."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])


@contextlib.contextmanager
def started(config: Path, environment: Mapping[str, str], is_direct: bool) -> Iterator[Started]:
    """Start to serve `config` on a free port; no process of it is left when the block ends.

    `is_direct`: yield the address of the gateway replica itself, which has a port of its own when Serve is
    throughput-optimised.
    """
    proxy_port, direct_port = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="eagleray-bench-") as folder:
        settings = read_yaml(config)
        settings["http_options"] = settings.get("http_options", {}) | {"host": "127.0.0.1", "port": proxy_port}
        own_config, log_path = Path(folder, config.name), Path(folder, "serve.log")
        own_config.write_text(yaml.safe_dump(settings), encoding="utf-8")
        # Serve gives the first ingress replica the first port of this range.
        ports = {
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(direct_port),
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(direct_port + 100),
        }
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "deployments.serve_run", str(own_config)],
                cwd=ROOT,
                env={**os.environ, **ports, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        try:
            yield Started(f"http://127.0.0.1:{direct_port if is_direct else proxy_port}", process, log_path)
        finally:
            _stop(process)


@contextlib.contextmanager
def served(config: Path, environment: Mapping[str, str], is_direct: bool) -> Iterator[Served]:
    """Do as `started` does, and wait until the server is ready. Raises SystemExit if it does not get ready."""
    with started(config, environment, is_direct) as server:
        _wait_until_ready(server)
        yield Served(server.url, psutil.Process(server.process.pid))


def _wait_until_ready(server: Started) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and server.process.poll() is None:
        with (
            contextlib.suppress(urllib.error.URLError, OSError),
            urllib.request.urlopen(f"{server.url}/readyz", timeout=10),
        ):
            return
        time.sleep(0.5)
    raise SystemExit(f"{server.url} did not get ready; the server's last words:\n{server.last_words()}")


def _stop(server: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        server.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(STOP_TIMEOUT_S)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=5)


def role_of(process: psutil.Process) -> str:
    """Return what a process of a server is, one of ROLES or `ray`."""
    title = " ".join(process.cmdline())
    return next((role for start, role in ROLES.items() if title.startswith(start)), "ray")


def free_port() -> int:
    """Return a TCP port of this machine that nothing listens on, and that the kernel gives to nobody meanwhile."""
    while True:
        # Below the range (32768 and up) from which processes that ask for any port get theirs.
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
