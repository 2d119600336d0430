"""A whole model in this process: for tests and scripts. Loads torch, so no leader of a served model imports it."""

import os
from collections import deque
from collections.abc import Callable

import torch

from core.errors import EaglerayError, ReplicaFailed, StartupError
from core.progress import Progress
from parallel.groups.solo import SoloGroup
from parallel.plan import StepPlan, StepResult
from parallel.rank.host import memory_of, node_name
from parallel.rank.loading import load_rank
from parallel.rank.loop import as_rank_error
from parallel.rank.messages import Joined, Load, Loaded, RankPace
from parallel.rank.worker import RankWorker


class SoloRankPool:
    """A RankPool of world size 1 without a process or a socket; `submit` computes."""

    def __init__(self, device: str = "cpu") -> None:
        self._device = torch.device(device)
        self._worker: RankWorker | None = None
        self._results: deque[StepResult] = deque()

    @property
    def world_size(self) -> int:
        """Always 1."""
        return 1

    def join(self, on_progress: Callable[[Progress], None]) -> list[Joined]:
        """Return what this process found."""
        memory = memory_of(self._device)
        on_progress(Progress(0, "connect", 1, 1))
        return [
            Joined(
                rank=0,
                generation=0,
                pid=os.getpid(),
                host="127.0.0.1",
                node=node_name(),
                device=self._device.type,
                total_memory_bytes=memory.total_bytes,
                free_memory_bytes=memory.free_bytes,
            )
        ]

    def load(self, load: Load, on_progress: Callable[[Progress], None]) -> list[Loaded]:
        """Load and warm up; blocks. Raises ReplicaFailed, StartupError."""
        try:
            self._worker, loaded, _ = load_rank(load, SoloGroup(), self._device, on_progress)
        except (EaglerayError, RuntimeError, MemoryError) as error:
            raise _as_pool_error(error) from error
        return [loaded]

    def submit(self, plan: StepPlan) -> None:
        """Compute one plan. Raises ReplicaFailed."""
        assert self._worker is not None, "load comes before plans"
        try:
            self._results.append(self._worker.run(plan))
        except (EaglerayError, RuntimeError, MemoryError) as error:
            raise _as_pool_error(error) from error

    def collect(self, timeout_s: float) -> StepResult:
        """Return the oldest result; never waits."""
        return self._results.popleft()

    def paces(self) -> list[RankPace]:
        """Return nothing: the one rank's steps are the engine's."""
        return []

    def check(self) -> None:
        """Return: what breaks here raises where it breaks."""

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Forget it: nothing is lost while nobody looks."""

    def renew(self, generation: int) -> None:
        """Forget what was computed; the next `load` reads the weights again."""
        self._results.clear()
        self._worker = None

    def close(self) -> None:
        """Drop the model. Idempotent."""
        self._worker = None


def _as_pool_error(error: Exception) -> EaglerayError:
    known = as_rank_error(error, rank=0)
    return known if isinstance(known, ReplicaFailed | StartupError) else ReplicaFailed(known.message)
