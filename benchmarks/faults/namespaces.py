"""Several hosts on one machine: network namespaces joined by a bridge, each with an address and a host name of its own.

What a host lacks of a real one: its memory, its clock and its disk are the machine's. Needs Linux, root and iproute2.
"""

import ipaddress
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Self

import psutil

_NETWORK = ipaddress.ip_network("198.18.0.0/16")
"""Kept for benchmarks of network devices (RFC 2544), so it is nobody's."""

Run = Callable[[Sequence[str]], str]
"""Runs a command and returns what it printed. Raises CannotMakeHosts."""


class CannotMakeHosts(Exception):
    """This machine does not let us make hosts; the message says why."""


def run_command(command: Sequence[str]) -> str:
    """Run a command and return what it printed. Raises CannotMakeHosts."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError) as error:
        said = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
        raise CannotMakeHosts(f"{' '.join(command)}: {said}") from None


def why_no_hosts() -> str | None:
    """Return what is missing on this machine to make hosts, None if nothing known is."""
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        return "the commands ip (iproute2) and unshare (util-linux) are needed"
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    return None


class HostNetwork:
    """A context manager: hosts 0 to n-1 and this machine on one network; nothing of them is left afterwards."""

    def __init__(self, num_hosts: int, run: Run = run_command, tag: int | None = None) -> None:
        """`tag`: makes the names unique on this machine; the process id if not given."""
        self._num_hosts = num_hosts
        self._run = run
        self._tag = os.getpid() if tag is None else tag
        # 13 hosts and this machine: the first and the last of 16 addresses are the network's own.
        first = (self._tag % 4096) * 16
        self._addresses = [str(_NETWORK[first + number]) for number in range(1, num_hosts + 2)]

    @property
    def own_address(self) -> str:
        """Address of this machine that every host can reach."""
        return self._addresses[-1]

    def address(self, host: int) -> str:
        """Return the host's address."""
        return self._addresses[host]

    def command(self, host: int, command: Iterable[str]) -> list[str]:
        """Return the command line that runs `command` on a host; the process keeps its id through it."""
        # A host name of its own: that is how ranks tell machines apart. And no name servers: this machine's cannot be
        # reached from there, and whoever asks for a name would wait for them.
        set_up = f'hostname {self._namespace(host)} && mount --bind /dev/null /etc/resolv.conf && exec "$@"'
        return ["ip", "netns", "exec", self._namespace(host), "unshare", "--uts", "sh", "-c", set_up, "sh", *command]

    def cut(self, host: int) -> None:
        """Take the host's link down: silence in both directions, no reset."""
        self._run(["ip", "link", "set", self._link(host), "down"])

    def mend(self, host: int) -> None:
        """Take the host's link up again."""
        self._run(["ip", "link", "set", self._link(host), "up"])

    def processes(self, host: int) -> list[psutil.Process]:
        """Return what runs on the host."""
        pids = self._run(["ip", "netns", "pids", self._namespace(host)]).split()
        return [psutil.Process(int(pid)) for pid in pids if psutil.pid_exists(int(pid))]

    def kill_host(self, host: int) -> None:
        """Cut the host off and kill all it runs, in this order: a host that loses power says nothing."""
        self.cut(host)
        for process in self.processes(host):
            process.kill()

    def __enter__(self) -> Self:
        """Make the network. Raises CannotMakeHosts and leaves nothing behind."""
        try:
            self._make()
        except BaseException:
            self._unmake()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._unmake()

    def _make(self) -> None:
        if reason := why_no_hosts():
            raise CannotMakeHosts(reason)
        self._run(["ip", "link", "add", "name", self._bridge, "type", "bridge"])
        self._run(["ip", "addr", "add", f"{self.own_address}/28", "dev", self._bridge])
        self._run(["ip", "link", "set", self._bridge, "up"])
        for host in range(self._num_hosts):
            namespace, link = self._namespace(host), self._link(host)
            inside = ["ip", "-n", namespace]
            self._run(["ip", "netns", "add", namespace])
            self._run(["ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", namespace])
            self._run(["ip", "link", "set", link, "master", self._bridge, "up"])
            self._run([*inside, "addr", "add", f"{self.address(host)}/28", "dev", "eth0"])
            self._run([*inside, "link", "set", "lo", "up"])
            self._run([*inside, "link", "set", "eth0", "up"])
            # Ray finds a host's own address by asking for the way out.
            self._run([*inside, "route", "add", "default", "via", self.own_address])

    def _unmake(self) -> None:
        for host in range(self._num_hosts):
            self._try(["ip", "link", "del", self._link(host)])
            self._try(["ip", "netns", "del", self._namespace(host)])
        self._try(["ip", "link", "del", self._bridge])

    def _try(self, command: Sequence[str]) -> None:
        try:
            self._run(command)
        except CannotMakeHosts:
            return  # it was never made

    @property
    def _bridge(self) -> str:
        return f"er{self._tag}b"

    def _namespace(self, host: int) -> str:
        return f"er{self._tag}h{host}"

    def _link(self, host: int) -> str:
        # As long as the kernel allows, 15 letters, with process ids of seven digits.
        return f"er{self._tag}v{host}"
