"""Ranks as child processes on this machine."""

import contextlib
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import msgspec

from core.errors import StartupError
from parallel.rank.messages import RankSpec

_ROOT = Path(__file__).resolve().parents[2]
"""Where the packages lie, so that ranks find them whatever directory the leader was started in."""
_LAST_LINES = 50


class LocalLauncher:
    """A RankLauncher: `python -m parallel.rank` for each rank, the spec on its standard input."""

    def __init__(self) -> None:
        self._ranks: dict[int, _RankProcess] = {}

    @property
    def pids(self) -> list[int]:
        """Process ids in rank order, also of processes that have ended."""
        return [self._ranks[rank].process.pid for rank in sorted(self._ranks)]

    def launch(self, specs: Sequence[RankSpec]) -> None:
        """Start one process per spec. Raises StartupError if the system refuses."""
        for spec in specs:
            self._ranks[spec.rank] = _RankProcess(spec)

    def stop(self) -> None:
        """Kill every process that is left and wait until it is gone. Idempotent, any thread."""
        for rank in list(self._ranks.values()):
            rank.process.kill()
        for rank in list(self._ranks.values()):
            rank.process.wait()

    def describe_exit(self, rank: int) -> str | None:
        """Return exit code or signal and the last line of standard error, None while the process runs."""
        process = self._ranks.get(rank)
        return None if process is None else process.describe_exit()


class _RankProcess:
    """One child and the last lines it wrote."""

    def __init__(self, spec: RankSpec) -> None:
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "parallel.rank"],
                stdin=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=_ROOT,
                # Ctrl-C in the leader's terminal is for the leader, which ends its ranks in order.
                start_new_session=True,
            )
        except OSError as error:
            raise StartupError(f"rank {spec.rank} cannot be started: {error}") from None
        assert self.process.stdin is not None and self.process.stderr is not None
        self._rank = spec.rank
        self._last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        # BrokenPipe: it is dead already, which whoever awaits it will find.
        with contextlib.suppress(BrokenPipeError), self.process.stdin as stdin:
            stdin.write(msgspec.json.encode(spec))
        self._reader = threading.Thread(target=self._read, args=(self.process.stderr,), daemon=True)
        self._reader.start()

    def describe_exit(self) -> str | None:
        code = self.process.poll()
        if code is None:
            return None
        # Its end of the pipe is closed; a moment lets the reader take what is left in it.
        self._reader.join(timeout=0.2)
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"{how}: {self._last_lines[-1]}" if self._last_lines else how

    def _read(self, stderr: IO[bytes]) -> None:
        with stderr:
            for line in stderr:
                text = line.decode(errors="replace").rstrip()
                self._last_lines.append(text)
                sys.stderr.write(f"[rank {self._rank}] {text}\n")
