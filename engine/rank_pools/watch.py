"""Hears the pulses of all ranks, whatever the engine does meanwhile: who is gone, who is frozen, where threads are."""

import contextlib
import logging
import select
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from core.clock import Clock, MonotonicClock
from core.frames import ConnectionLost, FrameBuffer, send_frame
from engine.rank_pools.reception import PulseConnection

logger = logging.getLogger(__name__)

_TICK_S = 0.05
_OWN_PAUSE_S = 0.5
"""A tick that comes later than this by so much means that this process did not run itself."""
_GIL_PATIENCE = 5.0
"""Times as long that a pulse may be silent which needs the rank's interpreter lock: some calls hold it for seconds."""
_NETWORK_PATIENCE = 2.0
"""Times as long that one may be silent which comes from another machine. TCP sends again what a link lost at twice the
interval each time, so after a second without a link up to another one passes before anything is heard."""
_READ_BYTES = 65536

_FLAGS = 5
"""Place of the flags among the fields of /proc/<pid>/stat that follow the state."""
_PF_EXITING = 0x4

OnLost = Callable[[int, str], None]
"""Gets a seat and what became of its process; called once for each, on the watch's thread."""

GONE = "it is gone"


def is_exiting(pid: int, proc: Path = Path("/proc")) -> bool:
    """Whether a process of this machine is known to have begun to end.

    The kernel frees its memory before it closes its connections: 0.1 s for half a gigabyte, seconds for a large model.
    """
    try:
        state, *fields = (proc / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
    except (OSError, ValueError):
        return False
    return state in (b"Z", b"X") or bool(int(fields[_FLAGS]) & _PF_EXITING)


class _Patient:
    """One pulse."""

    def __init__(self, pulse: PulseConnection, pid: int | None, frozen_after_s: float, now_s: float) -> None:
        self.sock = pulse.sock
        self.pid = pid
        self.sock.setblocking(False)
        is_here = pid is not None
        self.max_silence_s = (
            frozen_after_s * (_GIL_PATIENCE if pulse.needs_gil else 1.0) * (1.0 if is_here else _NETWORK_PATIENCE)
        )
        self.last_beat_s = now_s
        self.stacks: str | None = None
        self._frames = FrameBuffer()

    def is_lively(self, now_s: float) -> bool:
        """Whether it gave a sign of life within half the time that is allowed."""
        return now_s - self.last_beat_s < self.max_silence_s / 2

    def describe_silence(self, now_s: float) -> str:
        """Say how long it has been silent."""
        return f"frozen: no sign of life for {now_s - self.last_beat_s:.1f} s"

    def hear(self, now_s: float) -> None:
        """Take in what it has sent. Raises ConnectionLost."""
        try:
            data = self.sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise ConnectionLost(str(error)) from None
        if not data:
            raise ConnectionLost(GONE)
        self.last_beat_s = now_s
        for frame in self._frames.feed(data):
            if frame:
                self.stacks = frame.decode(errors="replace")


class RankWatch:
    """A thread that listens to pulses. Any method, any thread."""

    def __init__(self, frozen_after_s: float, on_lost: OnLost, clock: Clock | None = None) -> None:
        self._frozen_after_s = frozen_after_s
        self._on_lost = on_lost
        self._clock = clock or MonotonicClock()
        self._is_closed = threading.Event()
        # Guards the patients; notified when stacks arrive.
        self._news = threading.Condition()
        self._patients: dict[int, _Patient] = {}
        self._thread = threading.Thread(target=self._run, name="rank-watch", daemon=True)
        self._thread.start()

    def add(self, seat: int, pulse: PulseConnection, pid: int | None = None) -> None:
        """Listen to a process from now on; the connection is the watch's to close. `pid`: if it is of this machine."""
        with self._news:
            self._patients[seat] = _Patient(pulse, pid, self._frozen_after_s, self._clock.now_s())

    def remove(self, seat: int) -> None:
        """Listen to it no more."""
        with self._news:
            patient = self._patients.pop(seat, None)
        if patient is not None:
            patient.sock.close()

    def silences_s(self) -> dict[int, float]:
        """Return how long ago each process gave its last sign of life."""
        now_s = self._clock.now_s()
        with self._news:
            return {seat: now_s - patient.last_beat_s for seat, patient in self._patients.items()}

    def silent(self) -> dict[int, str]:
        """Return the processes that have been silent for half the time that is allowed them, and for how long."""
        now_s = self._clock.now_s()
        with self._news:
            return {seat: p.describe_silence(now_s) for seat, p in self._patients.items() if not p.is_lively(now_s)}

    def stacks(self, timeout_s: float) -> dict[int, str]:
        """Ask every process where its threads are; return what those say that answer in time. Blocks."""
        with self._news:
            for patient in self._patients.values():
                patient.stacks = None
                with contextlib.suppress(ConnectionLost):
                    send_frame(patient.sock, b"")
            # A frozen one will not answer: those that beat are waited for.
            now_s = self._clock.now_s()
            alive = [patient for patient in self._patients.values() if patient.is_lively(now_s)]
            self._news.wait_for(lambda: all(patient.stacks is not None for patient in alive), timeout_s)
            return {seat: patient.stacks for seat, patient in self._patients.items() if patient.stacks is not None}

    def close(self) -> None:
        """End the thread and every connection. Idempotent."""
        self._is_closed.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        for seat in list(self._patients):
            self.remove(seat)

    def _run(self) -> None:
        while not self._is_closed.is_set():
            began_s = self._clock.now_s()
            ready = self._wait()
            now_s = self._clock.now_s()
            lost = self._hear(ready, now_s)
            if now_s - began_s > _TICK_S + _OWN_PAUSE_S:
                # Beats may have been missed because nobody here was running.
                self._forgive(now_s)
            for seat, what in (lost | self._ailing(now_s)).items():
                self._on_lost(seat, what)

    def _wait(self) -> set[int]:
        """Return the seats whose pulses are readable, after a tick at the latest."""
        poll = select.poll()
        with self._news:
            seat_of = {patient.sock.fileno(): seat for seat, patient in self._patients.items()}
        for fileno in seat_of:
            poll.register(fileno, select.POLLIN)
        return {seat_of[fileno] for fileno, _ in poll.poll(1e3 * _TICK_S)}

    def _hear(self, seats: Iterable[int], now_s: float) -> dict[int, str]:
        """Take in what the processes have sent; forget and return those whose connections are at their end."""
        lost: dict[int, str] = {}
        with self._news:
            for seat in seats:
                patient = self._patients.get(seat)
                if patient is None:
                    continue
                try:
                    patient.hear(now_s)
                except ConnectionLost:
                    lost[seat] = GONE
                    self.remove(seat)
            self._news.notify_all()
        return lost

    def _forgive(self, now_s: float) -> None:
        logger.warning("the leader itself did not run for a while; silent ranks are given more time")
        with self._news:
            for patient in self._patients.values():
                patient.last_beat_s = now_s

    def _ailing(self, now_s: float) -> dict[int, str]:
        """Forget and return the processes that are about to end, or have been silent for too long."""
        ailing: dict[int, str] = {}
        with self._news:
            for seat, patient in list(self._patients.items()):
                if patient.pid is not None and is_exiting(patient.pid):
                    ailing[seat] = GONE
                    self.remove(seat)
                elif now_s - patient.last_beat_s > patient.max_silence_s:
                    ailing[seat] = patient.describe_silence(now_s)
                    self.remove(seat)
        return ailing
