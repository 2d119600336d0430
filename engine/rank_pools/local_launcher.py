"""Ranks as child processes on this machine."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import msgspec

from core.errors import PlacementImpossible, StartupError
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
        """Process ids in order of seats, which at first are ranks, also of processes that have ended."""
        return [self._ranks[seat].process.pid for seat in sorted(self._ranks)]

    def launch(self, specs: Sequence[RankSpec]) -> None:
        """Start one process per spec. Raises StartupError if the system refuses."""
        for spec in specs:
            self._ranks[spec.seat] = _RankProcess(spec)

    def end(self, seat: int, pid: int | None = None) -> None:
        """Kill the seat's process and wait until it is gone. Idempotent, any thread."""
        if (rank := self._ranks.get(seat)) is not None:
            rank.process.kill()
            rank.process.wait()

    def stop(self) -> None:
        """Kill every process that is left and wait until it is gone. Idempotent, any thread."""
        for rank in list(self._ranks.values()):
            rank.process.kill()
        for rank in list(self._ranks.values()):
            rank.process.wait()

    def describe_exit(self, seat: int) -> str | None:
        """Return exit code or signal and the last line it printed, None while the process runs."""
        process = self._ranks.get(seat)
        return None if process is None else process.describe_exit()


def environment_of(spec: RankSpec, visible: str | None) -> dict[str, str]:
    """Return what the rank's environment has besides the leader's: a rank sees its own GPU and no other.

    `visible` is the leader's list of GPUs, None where it sees all. Raises PlacementImpossible if the list is too short.
    """
    if spec.device != "cuda":
        return {}
    if visible is None:
        return {"CUDA_VISIBLE_DEVICES": str(spec.seat)}
    gpus = [gpu.strip() for gpu in visible.split(",") if gpu.strip()]
    if spec.seat >= len(gpus):
        raise PlacementImpossible(
            f"CUDA_VISIBLE_DEVICES={visible!r} shows {len(gpus)} GPUs to {spec.world_size} ranks; "
            "show more, or lower tensor_parallel_size"
        )
    return {"CUDA_VISIBLE_DEVICES": gpus[spec.seat]}


class _RankProcess:
    """One child and the last lines it wrote."""

    def __init__(self, spec: RankSpec) -> None:
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "parallel.rank"],
                stdin=subprocess.PIPE,
                # One pipe for both: nothing a rank prints gets into what the leader prints.
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=_ROOT,
                env={**os.environ, **environment_of(spec, os.environ.get("CUDA_VISIBLE_DEVICES"))},
                # Ctrl-C in the leader's terminal is for the leader, which ends its ranks in order.
                start_new_session=True,
            )
        except OSError as error:
            raise StartupError(f"rank {spec.seat} cannot be started: {error}") from None
        assert self.process.stdin is not None and self.process.stdout is not None
        self._seat = spec.seat
        self._last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        # BrokenPipe: it is dead already, which whoever awaits it will find.
        with contextlib.suppress(BrokenPipeError), self.process.stdin as stdin:
            stdin.write(msgspec.json.encode(spec))
        self._reader = threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True)
        self._reader.start()

    def describe_exit(self) -> str | None:
        code = self.process.poll()
        if code is None:
            return None
        # Its end of the pipe is closed; a moment lets the reader take what is left in it.
        self._reader.join(timeout=0.2)
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"{how}: {self._last_lines[-1]}" if self._last_lines else how

    def _read(self, output: IO[bytes]) -> None:
        with output:
            for line in output:
                text = line.decode(errors="replace").rstrip()
                self._last_lines.append(text)
                sys.stderr.write(f"[rank {self._seat}] {text}\n")
