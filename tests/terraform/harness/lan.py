"""A network of its own for machines that Terraform made: the addresses of the VPC, apart from this machine."""

import concurrent.futures
import contextlib
import ctypes
import ipaddress
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Self, TypeVar

from benchmarks.faults.namespaces import CannotMakeHosts, run_command, why_no_hosts

METADATA_ADDRESS = "169.254.169.254"
_CLONE_NEWNET = 0x40000000
_THREADS = 16
_PREFIX = "ert"

Answer = TypeVar("Answer")


class Lan:
    """A context manager: one namespace with a bridge, which has the router's address and that of the metadata service.

    Threads of this process look out of it as a load balancer does; `run` gives them work.
    """

    def __init__(self, network: str, tag: int | None = None) -> None:
        """`network`: the VPC's range, `10.64.0.0/16`."""
        self._network = ipaddress.ip_network(network)
        self._tag = os.getpid() if tag is None else tag
        self._made: list[str] = []
        self._links: dict[str, str] = {}
        self._threads: concurrent.futures.ThreadPoolExecutor | None = None

    @property
    def router(self) -> str:
        """The network's first address; this machine answers at it."""
        return str(self._network[1])

    def run(self, action: Callable[..., Answer], *arguments: object) -> "concurrent.futures.Future[Answer]":
        """Have `action` run by a thread that sees this network and no other."""
        assert self._threads is not None
        return self._threads.submit(action, *arguments)

    def listen(self, address: str, port: int) -> socket.socket:
        """Return a socket that listens in this network; threads of any network may accept from it."""
        return self.run(socket.create_server, (address, port)).result(timeout=10)

    def add_host(self, name: str, address: str) -> str:
        """Make a namespace with one interface that has `address`; return its name."""
        namespace = f"{_PREFIX}{self._tag}{name}"
        link = self._links[namespace] = f"port{len(self._links)}"
        inside = ["ip", "-n", namespace]
        self._make_namespace(namespace)
        run_command(
            ["ip", "-n", namespace, "link", "add", "eth0", "type", "veth", "peer", "name", link, "netns", self._lan]
        )
        run_command(["ip", "-n", self._lan, "link", "set", link, "master", "lan", "up"])
        run_command([*inside, "addr", "add", f"{address}/{self._network.prefixlen}", "dev", "eth0"])
        run_command([*inside, "link", "set", "lo", "up"])
        run_command([*inside, "link", "set", "eth0", "up"])
        run_command([*inside, "route", "add", "default", "via", self.router])
        return namespace

    def cut(self, namespace: str) -> None:
        """Take the host's link down: silence in both directions, no reset."""
        run_command(["ip", "-n", self._lan, "link", "set", self._links[namespace], "down"])

    def mend(self, namespace: str) -> None:
        """Take the host's link up again."""
        run_command(["ip", "-n", self._lan, "link", "set", self._links[namespace], "up"])

    def __enter__(self) -> Self:
        """Make the network. Raises CannotMakeHosts and leaves nothing behind."""
        if reason := why_no_hosts():
            raise CannotMakeHosts(reason)
        remove_leftovers()
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
        for namespace in reversed(self._made):
            with contextlib.suppress(CannotMakeHosts):
                run_command(["ip", "netns", "del", namespace])
        self._made.clear()

    def _make(self) -> None:
        inside = ["ip", "-n", self._lan]
        self._make_namespace(self._lan)
        run_command([*inside, "link", "set", "lo", "up"])
        run_command([*inside, "link", "add", "lan", "type", "bridge"])
        run_command([*inside, "link", "set", "lan", "up"])
        for address in (f"{self.router}/{self._network.prefixlen}", f"{METADATA_ADDRESS}/32"):
            run_command([*inside, "addr", "add", address, "dev", "lan"])
        self._threads = concurrent.futures.ThreadPoolExecutor(_THREADS, "lan", _enter_network, (self._lan,))

    def _make_namespace(self, name: str) -> None:
        run_command(["ip", "netns", "add", name])
        self._made.append(name)

    @property
    def _lan(self) -> str:
        return f"{_PREFIX}{self._tag}lan"


def remove_leftovers() -> None:
    """Remove the namespaces of runs that were killed: their names have the ids of processes that are gone."""
    for line in run_command(["ip", "netns", "list"]).splitlines():
        ours = re.match(rf"{_PREFIX}(\d+)[a-z]", line)
        if ours and not Path(f"/proc/{ours[1]}").exists():
            run_command(["ip", "netns", "del", line.split()[0]])


def _enter_network(namespace: str) -> None:
    """Move the calling thread, and no other, into a network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{namespace}") as file:
        if libc.setns(file.fileno(), _CLONE_NEWNET) != 0:
            raise CannotMakeHosts(f"setns {namespace}: {os.strerror(ctypes.get_errno())}")
