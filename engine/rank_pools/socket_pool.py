"""Ranks in processes of their own, one connection each. Whoever starts the processes is the launcher's business."""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NoReturn, TypeVar

import msgspec

from core.errors import EaglerayError, RankDied, ReplicaFailed, StepTimeout
from core.progress import Progress
from engine.rank_pools.connections import Arrival, RankConnections, RankLost
from engine.rank_pools.crew import Crew
from engine.rank_pools.failures import cause_of, is_failure, is_second_hand, to_pool_error
from engine.rank_pools.first_memory import FirstMemory
from engine.rank_pools.launcher import RankLauncher
from engine.rank_pools.options import PoolOptions
from engine.rank_pools.spare import imports_only, preload
from engine.rank_pools.watch import GONE
from parallel.plan import StepPlan, StepResult
from parallel.rank.messages import (
    Enlist,
    FromRank,
    Joined,
    Listening,
    Load,
    Loaded,
    Plan,
    RankError,
    RankPace,
    RankProgress,
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
_EXIT_WAIT_S = 0.04
"""How long to wait for the launcher to know how a process ended whose connection has."""


class SocketRankPool:
    """A RankPool over the rank channel. After a failure `renew` lets the ranks that live form the next generation."""

    def __init__(self, launcher: RankLauncher, world_size: int, generation: int, options: PoolOptions) -> None:
        self._world_size = world_size
        self._generation = generation
        self._options = options
        self._ranks = RankConnections()
        self._steps_under_way: deque[int] = deque()
        self._failure: EaglerayError | None = None
        # Ranks that the watch found dead or frozen, and what became of them; written by its thread.
        self._lost: dict[int, str] = {}
        self._lost_lock = threading.Lock()
        self._when_lost: Callable[[], None] = lambda: None
        self._ailing: set[int] = set()
        """Ranks that will not be in the next generation."""
        self._memory = FirstMemory()
        self._paces: dict[int, RankPace] = {}
        self._is_closing = threading.Event()
        self._close_lock = threading.Lock()
        self._is_closed = False
        self._crew = Crew(launcher, world_size, options, self._note_lost)

    @property
    def world_size(self) -> int:
        """Ranks in the pool."""
        return self._world_size

    def join(self, on_progress: Callable[[Progress], None]) -> list[Joined]:
        """Have a process for each rank, and return what each found, once they form a group; blocks.

        Starts those that are missing: all at first, later those whose predecessors died or did not come back in time.
        Raises RankDied, ReplicaFailed, StartupError.
        """
        deadline_s = time.monotonic() + self._options.join_timeout_s
        joined = self._hear_survivors()
        self._crew.start_missing()
        if self._is_closing.is_set():
            # `close` came while they were being started, and may have missed some.
            self._crew.stop()
        self._crew.admit(deadline_s, self._is_closing.is_set)
        for rank, guest in self._crew.guests.items():
            if rank not in joined:
                self._ranks.add(rank, guest.channel)
                self._send(rank, Enlist(rank, self._generation))
        joined |= self._hear_joined(deadline_s, self._world_size - len(joined))
        if self._world_size > 1:
            self._rendezvous(joined[0].host, deadline_s)
        self._hear_from_all(RankProgress, deadline_s, on_progress, "form a group")
        return [self._memory.of(joined[rank]) for rank in range(self._world_size)]

    def load(self, load: Load, on_progress: Callable[[Progress], None]) -> list[Loaded]:
        """Have every rank load and warm up; one that has these weights keeps them. Blocks.

        Raises ReplicaFailed, StartupError.
        """
        self._broadcast(load)
        deadline_s = time.monotonic() + self._options.load_timeout_s
        loaded = self._hear_from_all(Loaded, deadline_s, on_progress, "load")
        is_solo = self._world_size == 1
        self._crew.start_spare(preload(load, loaded[0], self._generation) if is_solo else imports_only)
        return loaded

    def submit(self, plan: StepPlan) -> None:
        """Send one plan to every rank without waiting for it. Raises ReplicaFailed."""
        self.check()
        assert len(self._steps_under_way) < MAX_PLANS_UNDER_WAY, "collect before submitting a third plan"
        self._steps_under_way.append(plan.step)
        self._broadcast(Plan(plan))

    def collect(self, timeout_s: float) -> StepResult:
        """Return the result of the oldest plan under way. Raises StepTimeout, RankDied, OutOfMemory, ReplicaFailed."""
        if self._failure is not None:
            raise self._failure
        step = self._steps_under_way[0]
        deadline_s = time.monotonic() + timeout_s

        def late() -> ReplicaFailed:
            # The step's time may be up a moment before that of a frozen rank's pulse: it is the cause all the same.
            self._lost |= self._crew.silent()
            if self._lost:
                self._fail([])
            error = StepTimeout(f"step {step} did not finish within {timeout_s:g} s")
            self._keep_incident(error.message)
            return error

        while True:
            for arrival in self._receive(deadline_s, late):
                if isinstance(arrival.message, RankPace):
                    self._paces[arrival.rank] = arrival.message
                elif isinstance(arrival.message, Result):
                    assert arrival.message.result.step == step, "rank 0 answers plans in order"
                    self._steps_under_way.popleft()
                    return arrival.message.result

    def paces(self) -> list[RankPace]:
        """Return what each rank has last said of its steps in this generation; any thread."""
        return [self._paces[rank] for rank in sorted(self._paces.copy())]

    def check(self) -> None:
        """Return if all ranks are well, as far as is known. Raises ReplicaFailed."""
        if self._failure is not None:
            raise self._failure
        if self._lost:
            self._fail([])

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Have `callback` called, on another thread, whenever `check` begins to raise while nobody asks."""
        self._when_lost = callback

    def renew(self, generation: int) -> None:
        """Kill the ranks that failed, hang or are gone; those that are left await the next generation in `join`.

        Blocks until the dead are gone; others are started meanwhile. Raises StartupError, ReplicaFailed.
        """
        ailing = self._ailing | self._lost.keys() | (set(self._crew.guests) - set(self._ranks.open_ranks))
        for rank in ailing:
            self._dismiss(rank)
        self._generation = generation
        self._steps_under_way.clear()
        self._paces = {}
        self._lost.clear()
        self._ailing.clear()
        self._failure = None
        self._crew.start_missing()
        for rank in self._ranks.open_ranks:
            with contextlib.suppress(RankLost):
                self._ranks.send(rank, Enlist(rank, generation))

    def close(self) -> None:
        """Shut the ranks down, killing those that do not leave in time. Idempotent, any thread."""
        with self._close_lock:
            if self._is_closed:
                return
            self._is_closing.set()
            # Ranks that failed, or hang, do not read what is said to them.
            if self._failure is None and not self._lost:
                self._ask_to_leave()
            self._crew.stop()
            self._ranks.wake()
            self._ranks.close()
            self._crew.close()
            self._is_closed = True

    def _hear_survivors(self) -> dict[int, Joined]:
        """Return what those say that come back in time; dismiss the others."""
        survivors = set(self._ranks.open_ranks)
        joined: dict[int, Joined] = {}
        deadline_s = time.monotonic() + self._options.rejoin_timeout_s
        while survivors - joined.keys() and (left_s := deadline_s - time.monotonic()) > 0:
            for arrival in self._ranks.receive(left_s):
                # All else was said in a generation that is over.
                if isinstance(arrival.message, Joined) and arrival.message.generation == self._generation:
                    joined[arrival.rank] = arrival.message
                elif is_failure(arrival) and not is_second_hand(arrival):
                    survivors.discard(arrival.rank)
                    self._dismiss(arrival.rank)
            for rank in survivors & self._lost.keys():
                survivors.discard(rank)
                self._dismiss(rank)
            if self._is_closing.is_set():
                raise RankDied("the ranks were closed")
        for rank in survivors - joined.keys():
            log.warning("rank did not come back in time", extra={"rank": rank})
            self._dismiss(rank)
        if joined:
            log.info("ranks keep their weights", extra={"ranks": sorted(joined), "generation": self._generation})
        return joined

    def _hear_joined(self, deadline_s: float, num_missing: int) -> dict[int, Joined]:
        joined: dict[int, Joined] = {}
        late = ReplicaFailed("the ranks did not join in time")
        while len(joined) < num_missing:
            for arrival in self._receive(deadline_s, lambda: late):
                if isinstance(arrival.message, Joined) and arrival.message.generation == self._generation:
                    joined[arrival.rank] = arrival.message
                    _log_joined(arrival.message)
        return joined

    def _dismiss(self, rank: int) -> None:
        self._ranks.remove(rank)
        self._crew.dismiss(rank)
        with self._lost_lock:
            # Whoever takes its place is another.
            self._lost.pop(rank, None)

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
        if any(map(is_failure, arrivals)) or self._lost:
            self._fail([arrival for arrival in arrivals if is_failure(arrival)])
        if not arrivals and self._is_closing.is_set():
            self._failure = RankDied("the ranks were closed")
            raise self._failure
        if not arrivals and time.monotonic() >= deadline_s:
            self._failure = late()
            raise self._failure
        return arrivals

    def _note_lost(self, seat: int, what: str) -> None:
        """Have whoever waits for the ranks, or does not, hear of it; called by the watch."""
        with self._lost_lock:
            rank = self._crew.rank_at(seat)
            if rank is None or self._is_closing.is_set():
                return
            self._lost[rank] = what
        self._ranks.interrupt()
        self._when_lost()

    def _fail(self, failures: list[Arrival]) -> NoReturn:
        """Find the cause, remember it, raise it."""
        if self._is_closing.is_set():
            raise RankDied("the ranks were closed")
        if self._lost:
            # What a rank said before its end is here already, and tells more than the end.
            failures += [arrival for arrival in self._ranks.receive(0) if is_failure(arrival)]
            failures += [Arrival(rank, None) for rank in list(self._lost)]
        deadline_s = time.monotonic() + _CAUSE_WAIT_S
        while (cause := cause_of(failures)) is None and (left_s := deadline_s - time.monotonic()) > 0:
            failures += [arrival for arrival in self._ranks.receive(left_s) if is_failure(arrival)]
        self._ailing |= {failure.rank for failure in failures if not is_second_hand(failure)}
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
        lost = self._lost.get(rank, GONE)
        if lost != GONE:
            self._keep_incident(f"rank {rank} is {lost}")
            return lost
        # The connection breaks a moment before the process is a corpse that can be asked.
        deadline_s = time.monotonic() + _EXIT_WAIT_S
        while (how := self._crew.describe_exit(rank)) is None and time.monotonic() < deadline_s:
            time.sleep(0.005)
        return how or GONE

    def _keep_incident(self, what: str) -> None:
        steps = list(self._steps_under_way)
        self._crew.keep_incident(what, self._generation, steps, self._ranks.open_ranks, self._lost)

    def _ask_to_leave(self) -> None:
        """Send Shutdown and wait until every rank has left, or the grace is over."""
        deadline_s = time.monotonic() + self._options.close_grace_s
        with contextlib.suppress(RankLost):
            self._ranks.broadcast(Shutdown())
            while self._ranks.open_ranks and time.monotonic() < deadline_s:
                self._ranks.receive(deadline_s - time.monotonic())


def _log_joined(joined: Joined) -> None:
    cpu = {} if joined.cpu is None else msgspec.structs.asdict(joined.cpu)
    log.info("rank joined", extra={"rank": joined.rank, "rank_pid": joined.pid, "device": joined.device, **cpu})
