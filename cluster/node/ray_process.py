"""`ray start --block` as a child process: it holds the node's Ray processes and ends when one of them does."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

_SHOWN_LINES = 8


class RayProcess(Protocol):
    """A running `ray start --block`."""

    def exit_code(self) -> int | None:
        """Return how it ended, None while it runs."""
        ...

    def last_words(self) -> str:
        """Return the end of what it printed, in one line."""
        ...

    def stop(self, limit_s: float) -> None:
        """End it, and with it the node's Ray processes; blocks up to `limit_s`, then kills."""
        ...


class StartRay(Protocol):
    """How the node starts Ray."""

    def __call__(self, command: Sequence[str], environment: Mapping[str, str]) -> RayProcess:
        """Start the command with these variables added to the surroundings."""
        ...


class RayChild:
    """Ray of this machine, ended by its process id: `ray stop` would end whatever else runs Ray here."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log_path: Path) -> None:
        self._log_path = log_path
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                # A signal to us is not one to Ray: it is told to stop once we have told the cluster.
                start_new_session=True,
            )

    def exit_code(self) -> int | None:
        """Return how it ended, None while it runs."""
        return self._process.poll()

    def last_words(self) -> str:
        """Return the end of what it printed, in one line."""
        lines = self._log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line.strip() for line in lines if line.strip()]
        return " | ".join(said[-_SHOWN_LINES:]) or "nothing"

    def stop(self, limit_s: float) -> None:
        """End it, and with it the node's Ray processes; blocks up to `limit_s`, then kills."""
        self._process.terminate()
        try:
            self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            # Its session holds its children; the raylet's workers end with the raylet.
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
