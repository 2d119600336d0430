"""Machines on one machine: each boots its user data among processes, mounts, network and host name of its own.

What they lack of real ones: a kernel, memory, clock and cores of their own, systemd, disks, GPUs.
"""

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

from tests.terraform.harness.instances import Instance
from tests.terraform.harness.lan import Lan
from tests.terraform.harness.terraform_cli import ROOT

PYTHON = ROOT / ".venv" / "bin" / "python"
"""The interpreter of the hosts: the one that serves on this machine too."""
OWN_FOLDERS = ("/var/log", "/var/lib/eagleray", "/etc/eagleray", "/tmp")
"""What a host writes to and finds again after it was off. /tmp last: the disks themselves may lie in it."""
_SCRIPT = "/var/lib/eagleray/user-data.sh"
_END_LIMIT_S = 20.0
_INIT = """
set -eu
hostname "$1" && disk=$2 && shift 2
for kept in "$@"; do mkdir -p "$disk$kept" && mount --bind "$kept" "$disk$kept"; done
for folder in {folders}; do mkdir -p "$disk$folder" && mount --rbind "$disk$folder" "$folder"; done
mount -t tmpfs none /run && mount -t tmpfs none /dev/shm
mount --bind /dev/null /etc/resolv.conf
while :; do  # stands in for systemd: Restart=always
  bash {script} && status=0 || status=$?
  echo "lab: the node ended with $status and is started again"
  sleep 5
done
"""


class Host:
    """One machine. It keeps its disk from one boot to the next."""

    def __init__(self, lan: Lan, name: str, instance: Instance, folder: Path, environment: Mapping[str, str]) -> None:
        """`environment`: what every program of the host gets, beside a search path."""
        self.name = name
        self.instance = instance
        self.log = folder / f"{name}.log"
        self.disk = folder / name
        self._lan = lan
        self._network = lan.add_host(name, instance.address)
        self._environment = {"PATH": os.environ["PATH"], "HOME": "/var/lib/eagleray", "LANG": "C.UTF-8", **environment}
        self._process: subprocess.Popen[bytes] | None = None
        script = self.disk / _SCRIPT.lstrip("/")
        script.parent.mkdir(parents=True)
        script.write_text(instance.user_data)

    def power_on(self) -> None:
        """Boot; returns at once."""
        self._lan.mend(self._network)
        init = _INIT.format(folders=" ".join(OWN_FOLDERS), script=_SCRIPT)
        unshare = ["unshare", *"--mount --pid --uts --ipc --fork --kill-child --mount-proc".split()]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["ip", "netns", "exec", self._network, *unshare]
                + ["bash", "-c", init, "init", self.name, str(self.disk), *_hidden_by_tmp()],
                cwd="/",
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def power_off(self) -> None:
        """End everything that runs on the host, without a word on the network; returns when nothing of it is left."""
        if self._process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            self._lan.cut(self._network)
            family = psutil.Process(self._process.pid).children(recursive=True)
            self._process.kill()  # and with it its child, the first process of the host, and with that all others
            psutil.wait_procs(family, _END_LIMIT_S)
        self._process.wait(_END_LIMIT_S)
        self._process = None

    def run(self, *command: str, environment: Mapping[str, str] | None = None, timeout_s: float = 60) -> str:
        """Return what a command that runs on the host printed, errors too. Raises subprocess.CalledProcessError."""
        done = subprocess.run(
            ["nsenter", "--all", "--target", str(self._first_process()), *command],
            env=self._environment | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=True,
        )
        return done.stdout

    def processes(self, title: str) -> list[psutil.Process]:
        """Return the processes of the host whose command line starts so."""
        found = []
        for process in psutil.Process(self._first_process()).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if shlex.join(process.cmdline()).strip("'").startswith(title):
                    found.append(process)
        return found

    def memory_gib(self) -> float:
        """Return what the host's processes hold, shared pages counted in proportion."""
        total = 0
        for process in psutil.Process(self._first_process()).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().pss
        return total / 2**30

    def last_words(self, num_lines: int = 30) -> str:
        """Return the end of what the host's boot printed."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join([f"--- {self.name}", *lines[-num_lines:]])

    def _first_process(self) -> int:
        assert self._process is not None, f"{self.name} is off"
        return psutil.Process(self._process.pid).children()[0].pid


def make_mount_points() -> list[Path]:
    """Make the folders that hosts mount over where this machine lacks them; return those made."""
    made = [Path(folder) for folder in OWN_FOLDERS if not Path(folder).exists()]
    for folder in made:
        folder.mkdir()
    return made


def _hidden_by_tmp() -> list[str]:
    """Return what hosts need of this machine's /tmp, which each of them has its own of."""
    needed = {ROOT, Path(os.path.realpath(PYTHON)).parents[1], Path(sys.prefix)}
    return [str(path) for path in sorted(needed) if path.is_relative_to("/tmp")]
