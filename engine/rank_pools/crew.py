"""The processes behind the ranks: who sits where, started, heard, replaced, ended."""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence

from engine.rank_pools.incidents import Incident, IncidentFolder, RankFacts
from engine.rank_pools.launcher import RankLauncher
from engine.rank_pools.options import LOOPBACK, PoolOptions
from engine.rank_pools.reception import Guest, Reception
from engine.rank_pools.spare import Prepare, Spare
from engine.rank_pools.watch import OnLost, RankWatch
from parallel.rank.messages import RankSpec

_STACKS_WAIT_S = 0.3
"""How long to wait for ranks to say where their threads are."""


class Crew:
    """Keeps a process for every rank, and a spare one if there is to be one. Used by one thread, `stop` by any."""

    def __init__(self, launcher: RankLauncher, world_size: int, options: PoolOptions, on_lost: OnLost) -> None:
        self._launcher = launcher
        self._world_size = world_size
        self._options = options
        self.watch = RankWatch(options.frozen_after_s, on_lost)
        self._guests: dict[int, Guest] = {}
        self._starting: dict[int, int] = {}
        """Seat of each rank whose process is awaited."""
        self._reception: Reception | None = None
        self._secret = b""
        self._spare: Spare | None = None

    @property
    def guests(self) -> dict[int, Guest]:
        """Processes by rank."""
        return self._guests

    def rank_at(self, seat: int) -> int | None:
        """Return which rank sits there; None if none does (any more). Any thread."""
        return next((rank for rank, guest in list(self._guests.items()) if guest.seat == seat), None)

    def silent(self) -> dict[int, str]:
        """Return the ranks of which nothing was heard for half the time after which they count as frozen, as such."""
        said = self.watch.silent()
        return {rank: said[guest.seat] for rank, guest in self._guests.items() if guest.seat in said}

    def start_missing(self) -> None:
        """Have a process started for every rank without one; does not wait. Raises StartupError, ReplicaFailed."""
        missing = [r for r in range(self._world_size) if r not in self._guests and r not in self._starting]
        if missing and (guest := self._take_spare()) is not None:
            self._guests[missing.pop(0)] = guest
        if not missing:
            return
        if self._reception is None:
            self._secret = secrets.token_bytes(32)
            self._reception = Reception(self._options.leader_host, self._world_size, self._secret)
        self._starting |= dict(zip(missing, self._free_seats(), strict=False))
        specs = [self._spec(self._starting[rank], self._reception.port, self._secret) for rank in missing]
        self._launcher.launch(specs)

    def admit(self, deadline_s: float, is_closing: Callable[[], bool]) -> None:
        """Return once every process that was started has arrived. Blocks. Raises RankDied, ReplicaFailed."""
        if self._reception is None:
            return
        with self._reception as reception:
            self._reception = None
            seats, self._starting = self._starting, {}
            guests = reception.admit(seats.values(), deadline_s, self._launcher.describe_exit, is_closing)
        of_seat = {guest.seat: guest for guest in guests}
        for rank, seat in seats.items():
            self._guests[rank] = of_seat[seat]
            self._listen_to(of_seat[seat])

    def dismiss(self, rank: int) -> None:
        """Kill a rank's process; returns when it is gone."""
        guest = self._guests.pop(rank, None)
        if guest is not None:
            self.watch.remove(guest.seat)
            self._launcher.end(guest.seat, guest.pid)

    def start_spare(self, prepare: Prepare) -> None:
        """Have a spare process started, and prepared as `prepare` does, if there is to be one and is none."""
        if self._options.num_spares and self._spare is None:
            seat = self._free_seats()[0]
            self._spare = Spare(self._launcher, seat, self._spec, self._options, prepare)

    def describe_exit(self, rank: int) -> str | None:
        """Return how a rank's process ended, None if it is not known to have."""
        guest = self._guests.get(rank)
        return None if guest is None else self._launcher.describe_exit(guest.seat)

    def facts(self, open_ranks: Sequence[int], lost: Mapping[int, str]) -> list[RankFacts]:
        """Return what is known of each rank."""
        silences_s = self.watch.silences_s()
        return [
            RankFacts(
                rank=rank,
                seat=guest.seat,
                pid=guest.pid,
                silence_s=silences_s.get(guest.seat),
                is_connected=rank in open_ranks,
                lost=lost.get(rank),
            )
            for rank, guest in sorted(self._guests.items())
        ]

    def keep_incident(
        self, what: str, generation: int, steps_under_way: list[int], open_ranks: Sequence[int], lost: Mapping[int, str]
    ) -> None:
        """Write down what is known of every rank, and where its threads are, if that is wanted. Blocks."""
        if self._options.incidents is None:
            return
        incident = Incident(
            what=what,
            group=self._options.name,
            generation=generation,
            steps_under_way=steps_under_way,
            ranks=self.facts(open_ranks, lost),
        )
        IncidentFolder(self._options.incidents).write(incident, self.stacks(_STACKS_WAIT_S))

    def stacks(self, timeout_s: float) -> dict[int, str]:
        """Return where the threads of each rank are that answers in time. Blocks."""
        said = self.watch.stacks(timeout_s)
        return {rank: said[guest.seat] for rank, guest in self._guests.items() if guest.seat in said}

    def stop(self) -> None:
        """Kill every process; returns when they are gone. Idempotent, any thread."""
        if self._spare is not None:
            self._spare.abandon()
        self._launcher.stop()

    def close(self) -> None:
        """Let go of what is not a process: call `stop` first."""
        if self._spare is not None:
            self._spare.close()
        if self._reception is not None:
            self._reception.close()
        self.watch.close()

    def _take_spare(self) -> Guest | None:
        spare, self._spare = self._spare, None
        guest = None if spare is None else spare.take(time.monotonic() + self._options.join_timeout_s)
        if guest is not None:
            self._listen_to(guest)
        return guest

    def _listen_to(self, guest: Guest) -> None:
        is_here = self._options.leader_host == LOOPBACK
        self.watch.add(guest.seat, guest.pulse, guest.pid if is_here else None)

    def _free_seats(self) -> Sequence[int]:
        taken = {guest.seat for guest in self._guests.values()} | set(self._starting.values())
        if self._spare is not None:
            taken.add(self._spare.seat)
        return [seat for seat in range(self._world_size + self._options.num_spares) if seat not in taken]

    def _spec(self, seat: int, port: int, secret: bytes) -> RankSpec:
        options = self._options
        return RankSpec(
            seat=seat,
            world_size=self._world_size,
            leader_host=options.leader_host,
            leader_port=port,
            secret=secret,
            device=options.device,
            num_threads=options.num_threads,
            collective_timeout_s=options.collective_timeout_s,
        )
