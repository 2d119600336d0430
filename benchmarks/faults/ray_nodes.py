"""Ray nodes for the length of a measurement, with ports and folders of their own; others on this machine stay alone."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.report import ROOT
from benchmarks.serve_process import free_port

START_TIMEOUT_S = 120.0
_STARTED = "Ray runtime started"
"""What `ray start` prints when its node counts as a member. It gives up after 30 s, so nodes start one by one."""
_BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class NodePlan:
    """One node of a cluster."""

    host: str = "127.0.0.1"
    """Its address."""
    num_cpus: int = 2
    resources: Mapping[str, float] = field(default_factory=dict)
    prefix: Sequence[str] = ()
    """Put before the command: what runs it on another host."""
    has_dashboard: bool = False
    """`serve deploy` speaks to it; only a head has one."""


@dataclass(frozen=True)
class RayNode:
    """A running node."""

    address: str
    """Of the cluster, as RAY_ADDRESS has it."""
    dashboard_url: str
    environment: Mapping[str, str]
    """What processes need that speak to the cluster: its token."""
    process: psutil.Process
    log: Path

    def last_words(self) -> str:
        """Return the end of its log."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])


@contextlib.contextmanager
def ray_head(plan: NodePlan, folder: Path) -> Iterator[RayNode]:
    """Start the first node of a cluster; no process of it is left when the block ends. Raises SystemExit.

    `folder` should be short: Ray makes socket paths of it, which have a limit of 107 bytes.
    """
    port, dashboard_port, client_port, agent_port = (free_port() for _ in range(4))
    options = [
        "--head",
        f"--port={port}",
        f"--ray-client-server-port={client_port}",
        f"--dashboard-agent-listen-port={agent_port}",
        f"--include-dashboard={'true' if plan.has_dashboard else 'false'}",
        f"--dashboard-port={dashboard_port}",
        f"--temp-dir={folder}",
    ]
    address = f"{plan.host}:{port}"
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with _node(plan, options, folder / f"{plan.host}.log", environment) as (process, log):
        node = RayNode(address, f"http://127.0.0.1:{dashboard_port}", environment, process, log)
        _wait(node, f"port {port}", lambda: socket.create_connection((plan.host, port), timeout=1))
        _wait_until_started(node)
        if plan.has_dashboard:
            _wait(node, "the dashboard", lambda: _open_any(f"{node.dashboard_url}/api/version"))
        yield node


@contextlib.contextmanager
def ray_worker(plan: NodePlan, head: RayNode, folder: Path) -> Iterator[RayNode]:
    """Start another node of a cluster; no process of it is left when the block ends. Raises SystemExit."""
    options = [f"--address={head.address}", f"--dashboard-agent-listen-port={free_port()}"]
    with _node(plan, options, folder / f"{plan.host}.log", head.environment) as (process, log):
        node = RayNode(head.address, head.dashboard_url, head.environment, process, log)
        _wait_until_started(node)
        yield node


def serve_deploy(head: RayNode, config: Path) -> None:
    """Hand a Serve config to a running cluster as operators do; returns when it is accepted. Raises SystemExit."""
    command = [str(_BIN / "serve"), "deploy", str(config), "--address", head.dashboard_url]
    environment = {**os.environ, **head.environment}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"serve deploy failed:\n{done.stdout}{done.stderr}")


@contextlib.contextmanager
def family_ended(process: subprocess.Popen[bytes], timeout_s: float = 20.0) -> Iterator[psutil.Process]:
    """Yield the process; end it and everything it started when the block ends, gently first."""
    root = psutil.Process(process.pid)
    try:
        yield root
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            family = [root, *root.children(recursive=True)]
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout_s)
            for one in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            psutil.wait_procs(family, timeout=5)


@contextlib.contextmanager
def _node(
    plan: NodePlan, options: Sequence[str], log_path: Path, environment: Mapping[str, str]
) -> Iterator[tuple[psutil.Process, Path]]:
    command = [
        *plan.prefix,
        str(_BIN / "ray"),
        "start",
        f"--node-ip-address={plan.host}",
        f"--num-cpus={plan.num_cpus}",
        f"--resources={json.dumps(dict(plan.resources))}",
        # Any free port: the default range is shared by all clusters of a machine.
        "--min-worker-port=0",
        "--max-worker-port=0",
        "--disable-usage-stats",
        "--block",
        *options,
    ]
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "RAY_worker_niceness": "0", **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
    with family_ended(process) as root:
        yield root, log_path


def _wait_until_started(node: RayNode) -> None:
    """Return once the node is a member of its cluster. Raises SystemExit."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and node.process.is_running():
        if _STARTED in node.log.read_text(encoding="utf-8", errors="replace"):
            return
        time.sleep(0.2)
    raise SystemExit(f"a Ray node did not start:\n{node.last_words()}")


def _wait(node: RayNode, what: str, ask: Callable[[], contextlib.AbstractContextManager[object]]) -> None:
    """Return once `ask`, which connects, does not raise OSError. Raises SystemExit."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and node.process.is_running():
        with contextlib.suppress(OSError), ask():
            return
        time.sleep(0.2)
    raise SystemExit(f"the Ray node does not answer: {what}\n{node.last_words()}")


def _open_any(url: str) -> contextlib.AbstractContextManager[object]:
    """Return the answer, also when it is a refusal: whoever wants a token of us is there. Raises OSError."""
    try:
        return urllib.request.urlopen(url, timeout=5)
    except urllib.error.HTTPError as refusal:
        return refusal
