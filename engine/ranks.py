"""The seam between the engine and the processes that compute."""

from collections.abc import Callable
from typing import Protocol

from core.progress import Progress
from parallel.plan import StepPlan, StepResult
from parallel.rank.messages import Joined, Load, Loaded, RankPace


class RankPool(Protocol):
    """The ranks of one model copy. Used by one thread; `close` may come from any.

    Order of calls: join, load, then submit/collect pairs. After a ReplicaFailed only close is allowed, or, if the ranks
    had loaded, renew, after which it begins again with join.
    """

    @property
    def world_size(self) -> int:
        """Ranks in the pool."""
        ...

    def join(self, on_progress: Callable[[Progress], None]) -> list[Joined]:
        """Start the processes that are missing, form the TP group, return what each rank found. Blocks.

        Raises ReplicaFailed, StartupError.
        """
        ...

    def load(self, load: Load, on_progress: Callable[[Progress], None]) -> list[Loaded]:
        """Have every rank load and warm up; blocks. Raises ReplicaFailed, StartupError."""
        ...

    def submit(self, plan: StepPlan) -> None:
        """Send one plan to every rank without waiting for it; at most two may be under way. Raises ReplicaFailed."""
        ...

    def collect(self, timeout_s: float) -> StepResult:
        """Return the result of the oldest plan under way; blocks up to `timeout_s`.

        Raises StepTimeout, or RankDied as soon as any rank's connection breaks.
        """
        ...

    def paces(self) -> list[RankPace]:
        """Return what each rank that has said anything says of its steps in this generation; any thread."""
        ...

    def check(self) -> None:
        """Return if all ranks are well, as far as is known; asks nobody. Raises ReplicaFailed."""
        ...

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Have `callback` called, on any thread, when `check` begins to raise though nobody waits for the ranks."""
        ...

    def renew(self, generation: int) -> None:
        """Get rid of ranks that failed; those that are left keep their weights, and await `join`. Blocks.

        Nothing that was said in an earlier generation will be taken for an answer. Raises StartupError, ReplicaFailed.
        """
        ...

    def close(self) -> None:
        """Shut the ranks down, killing those that do not leave; returns when all are gone. Idempotent, any thread."""
        ...
