"""Ports that a server on this machine wants, and who has them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import psutil

from deployments.doctor.finding import Finding, note, ok, problem, warning

USUAL_PORTS: Mapping[int, str] = {8000: "HTTP", 6379: "Ray's GCS", 8265: "Ray's dashboard"}
_RAY = frozenset({"raylet", "gcs_server"})


@dataclass(frozen=True)
class Listener:
    """Who listens."""

    pid: int | None
    """None: another user's process."""
    name: str
    """Of the program."""


@dataclass(frozen=True)
class PortFacts:
    """Listeners of the ports that were asked for."""

    wanted: Mapping[int, str]
    """Port to what it is for."""
    listeners: Mapping[int, Listener]


def gather(wanted: Mapping[int, str]) -> PortFacts:
    """Return who listens on the wanted TCP ports of any address."""
    listeners: dict[int, Listener] = {}
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port in wanted:
            listeners[connection.laddr.port] = Listener(connection.pid, _name(connection.pid))
    return PortFacts(wanted, listeners)


def check(facts: PortFacts, *, is_needed: bool) -> Iterator[Finding]:
    """Yield a finding per port. `is_needed`: something is about to be started there."""
    for port, purpose in facts.wanted.items():
        listener = facts.listeners.get(port)
        if listener is None:
            yield ok("node.ports", f"port {port} ({purpose}) is free")
            continue
        found = f"port {port} ({purpose}) is taken by {listener.name}" + (
            f", pid {listener.pid}" if listener.pid else ""
        )
        if listener.name in _RAY or listener.name.startswith("ray::"):
            yield note("node.ports", found, "Ray runs here already")
        elif is_needed:
            yield problem("node.ports", found, "end that program, or choose another http_options.port")
        else:
            yield warning("node.ports", found, "end that program, or configure another port before you serve here")


def _name(pid: int | None) -> str:
    if pid is None:
        return "another user's program"
    try:
        process = psutil.Process(pid)
        # Ray titles the processes of actors.
        title = next(iter(process.cmdline()), "")
        return title if title.startswith("ray::") else process.name()
    except psutil.Error:
        return "a program that just ended"
