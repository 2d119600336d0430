"""Ranks in processes of their own, one connection each. Whoever starts the processes is the launcher's business."""

import contextlib
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NoReturn, TypeVar

import msgspec

from core.errors import EaglerayError, RankDied, ReplicaFailed, StepTimeout
from core.progress import Progress
from engine.rank_pools.connections import Arrival, RankConnections, RankLost
from engine.rank_pools.failures import cause_of, is_failure, to_pool_error
from engine.rank_pools.launcher import RankLauncher
from engine.rank_pools.options import PoolOptions
from engine.rank_pools.reception import Reception
from parallel.plan import StepPlan, StepResult
from parallel.rank.messages import (
    FromRank,
    Joined,
    Listening,
    Load,
    Loaded,
    Plan,
    RankError,
    RankProgress,
    RankSpec,
    Rendezvous,
    Result,
    Shutdown,
    ToRank,
)

log = logging.getLogger(__name__)

MAX_PLANS_UNDER_WAY = 2

Answer = TypeVar("Answer", bound=FromRank)

_CAUSE_WAIT_S = 0.05
"""How long to wait for the end of the dead rank's connection after a survivor's complaint; it takes about 1 ms."""
_EXIT_WAIT_S = 0.1
"""How long to wait for the launcher to know how a process ended whose connection has."""


class SocketRankPool:
    """A RankPool over the rank channel, for one generation of ranks."""

    def __init__(self, launcher: RankLauncher, world_size: int, generation: int, options: PoolOptions) -> None:
        self._launcher = launcher
        self._world_size = world_size
        self._generation = generation
        self._options = options
        self._ranks = RankConnections()
        self._steps_under_way: deque[int] = deque()
        self._failure: EaglerayError | None = None
        self._is_closing = threading.Event()
        self._close_lock = threading.Lock()
        self._is_closed = False

    @property
    def world_size(self) -> int:
        """Ranks in the pool."""
        return self._world_size

    def join(self, on_progress: Callable[[Progress], None]) -> list[Joined]:
        """Start the processes and return what each rank found, once they form a group; blocks.

        Raises RankDied, ReplicaFailed, StartupError.
        """
        options = self._options
        deadline_s = time.monotonic() + options.join_timeout_s
        secret = secrets.token_bytes(32)
        with Reception(options.leader_host, self._world_size, self._generation, secret) as reception:
            self._launcher.launch([self._spec(rank, reception.port, secret) for rank in range(self._world_size)])
            if self._is_closing.is_set():
                # `close` came while they were being started, and may have missed some.
                self._launcher.stop()
            guests = reception.admit_all(deadline_s, self._launcher.describe_exit, self._is_closing.is_set)
        for guest in guests:
            _log_joined(guest.joined)
            self._ranks.add(guest.joined.rank, guest.sock)
        if self._world_size > 1:
            self._rendezvous(guests[0].joined.host, deadline_s)
        self._hear_from_all(RankProgress, deadline_s, on_progress, "form a group")
        return [guest.joined for guest in guests]

    def load(self, load: Load, on_progress: Callable[[Progress], None]) -> list[Loaded]:
        """Have every rank load and warm up; blocks. Raises ReplicaFailed, StartupError."""
        self._broadcast(load)
        deadline_s = time.monotonic() + self._options.load_timeout_s
        return self._hear_from_all(Loaded, deadline_s, on_progress, "load")

    def submit(self, plan: StepPlan) -> None:
        """Send one plan to every rank without waiting for it. Raises ReplicaFailed."""
        if self._failure is not None:
            raise self._failure
        assert len(self._steps_under_way) < MAX_PLANS_UNDER_WAY, "collect before submitting a third plan"
        self._steps_under_way.append(plan.step)
        self._broadcast(Plan(plan))

    def collect(self, timeout_s: float) -> StepResult:
        """Return the result of the oldest plan under way. Raises StepTimeout, RankDied, OutOfMemory, ReplicaFailed."""
        if self._failure is not None:
            raise self._failure
        step = self._steps_under_way.popleft()
        deadline_s = time.monotonic() + timeout_s

        def late() -> ReplicaFailed:
            return StepTimeout(f"step {step} did not finish within {timeout_s:g} s")

        while True:
            for arrival in self._receive(deadline_s, late):
                if isinstance(arrival.message, Result):
                    assert arrival.message.result.step == step, "rank 0 answers plans in order"
                    return arrival.message.result

    def close(self) -> None:
        """Shut the ranks down, killing those that do not leave in time. Idempotent, any thread."""
        with self._close_lock:
            if self._is_closed:
                return
            self._is_closing.set()
            # Ranks that failed, or hang, do not read what is said to them.
            if self._failure is None:
                self._ask_to_leave()
            self._launcher.stop()
            self._ranks.wake()
            self._ranks.close()
            self._is_closed = True

    def _spec(self, rank: int, port: int, secret: bytes) -> RankSpec:
        options = self._options
        return RankSpec(
            rank=rank,
            world_size=self._world_size,
            generation=self._generation,
            leader_host=options.leader_host,
            leader_port=port,
            secret=secret,
            device=options.device,
            num_threads=options.num_threads,
            collective_timeout_s=options.collective_timeout_s,
        )

    def _rendezvous(self, host: str, deadline_s: float) -> None:
        """Have rank 0 open the store, and tell the others where."""
        self._send(0, Rendezvous(host, 0))
        late = ReplicaFailed("rank 0 did not open the rendezvous in time")
        while True:
            for arrival in self._receive(deadline_s, lambda: late):
                if isinstance(arrival.message, Listening):
                    for rank in range(1, self._world_size):
                        self._send(rank, Rendezvous(host, arrival.message.port))
                    return

    def _hear_from_all(
        self, kind: type[Answer], deadline_s: float, on_progress: Callable[[Progress], None], purpose: str
    ) -> list[Answer]:
        """Return each rank's message of `kind`, in rank order; progress is passed on meanwhile."""
        answers: dict[int, Answer] = {}
        late = ReplicaFailed(f"the ranks did not {purpose} in time")
        while len(answers) < self._world_size:
            for arrival in self._receive(deadline_s, lambda: late):
                if isinstance(arrival.message, RankProgress):
                    on_progress(arrival.message.progress)
                if isinstance(arrival.message, kind):
                    answers[arrival.rank] = arrival.message
        return [answers[rank] for rank in range(self._world_size)]

    def _send(self, rank: int, message: ToRank) -> None:
        try:
            self._ranks.send(rank, message)
        except RankLost as lost:
            self._fail_to_send(lost)

    def _broadcast(self, message: ToRank) -> None:
        try:
            self._ranks.broadcast(message)
        except RankLost as lost:
            self._fail_to_send(lost)

    def _fail_to_send(self, lost: RankLost) -> NoReturn:
        # What the ranks said last is still to be read, and may name the cause.
        said = [arrival for arrival in self._ranks.receive(0) if is_failure(arrival)]
        self._fail(said or [Arrival(lost.rank, None)])

    def _receive(self, deadline_s: float, late: Callable[[], ReplicaFailed]) -> list[Arrival]:
        """Return what came in; raises what `late` returns at the deadline, and the cause when a rank failed."""
        arrivals = self._ranks.receive(deadline_s - time.monotonic())
        if not arrivals:
            self._failure = RankDied("the ranks were closed") if self._is_closing.is_set() else late()
            raise self._failure
        if any(map(is_failure, arrivals)):
            self._fail([arrival for arrival in arrivals if is_failure(arrival)])
        return arrivals

    def _fail(self, failures: list[Arrival]) -> NoReturn:
        """Find the cause, remember it, raise it."""
        if self._is_closing.is_set():
            raise RankDied("the ranks were closed")
        deadline_s = time.monotonic() + _CAUSE_WAIT_S
        while (cause := cause_of(failures)) is None and (left_s := deadline_s - time.monotonic()) > 0:
            failures += [arrival for arrival in self._ranks.receive(left_s) if is_failure(arrival)]
        self._failure = self._to_error(cause or failures[0])
        raise self._failure

    def _to_error(self, failure: Arrival) -> EaglerayError:
        if isinstance(failure.message, RankError):
            log.error("rank failed", extra={"rank": failure.rank, "traceback": failure.message.traceback})
            return to_pool_error(failure.message)
        how = self._how_it_ended(failure.rank)
        log.error("rank died", extra={"rank": failure.rank, "how": how})
        return RankDied(f"rank {failure.rank} died: {how}")

    def _how_it_ended(self, rank: int) -> str:
        # The connection breaks a moment before the process is a corpse that can be asked.
        deadline_s = time.monotonic() + _EXIT_WAIT_S
        while (how := self._launcher.describe_exit(rank)) is None and time.monotonic() < deadline_s:
            time.sleep(0.005)
        return how or "its connection broke"

    def _ask_to_leave(self) -> None:
        """Send Shutdown and wait until every rank has left, or the grace is over."""
        deadline_s = time.monotonic() + self._options.close_grace_s
        with contextlib.suppress(RankLost):
            self._ranks.broadcast(Shutdown())
            while self._ranks.num_open and time.monotonic() < deadline_s:
                self._ranks.receive(deadline_s - time.monotonic())


def _log_joined(joined: Joined) -> None:
    cpu = {} if joined.cpu is None else msgspec.structs.asdict(joined.cpu)
    log.info("rank joined", extra={"rank": joined.rank, "rank_pid": joined.pid, "device": joined.device, **cpu})
