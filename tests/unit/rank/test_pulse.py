"""A rank that is frozen is told from one that is busy, and each can say where its threads are."""

import ctypes
import os
import queue
import socket
import threading

import msgspec
import pytest

from core.frames import ConnectionLost, receive_frame, send_frame
from engine.rank_pools.reception import PulseConnection
from engine.rank_pools.watch import GONE, RankWatch, is_exiting
from parallel.cpu.library import KernelLibrary
from parallel.rank import messages, pulse
from parallel.rank.pulse import NativeBeats, PythonBeats, RankPulse
from tests.support.fake_clock import FakeClock

TIMEOUT_S = 10.0


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    theirs.settimeout(TIMEOUT_S)
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.fixture
def watch():
    made: list[RankWatch] = []
    lost: queue.Queue[tuple[int, str]] = queue.Queue()

    def make(frozen_after_s: float, clock=None) -> tuple[RankWatch, queue.Queue]:
        made.append(RankWatch(frozen_after_s, lambda seat, what: lost.put((seat, what)), clock))
        return made[-1], lost

    yield make
    for each in made:
        each.close()


@pytest.fixture(params=["native", "python"])
def beats(request):
    return NativeBeats(KernelLibrary.load()) if request.param == "native" else PythonBeats()


def test_a_pulse_says_whose_it_is_and_beats(pair, beats):
    ours, theirs = pair
    rank = RankPulse(ours, 3, beats)
    hello = msgspec.msgpack.decode(receive_frame(theirs), type=messages.FromRank)
    assert hello == messages.Pulse(3, beats.needs_gil)
    assert [receive_frame(theirs) for _ in range(3)] == [b"", b"", b""]
    rank.stop()
    with pytest.raises(ConnectionLost):
        while True:
            receive_frame(theirs)


def test_native_beats_go_on_while_another_thread_holds_the_interpreter_lock(pair):
    ours, theirs = pair
    rank = RankPulse(ours, 0, NativeBeats(KernelLibrary.load()))
    receive_frame(theirs)
    # Called through PyDLL, a C function keeps the lock.
    ctypes.PyDLL(None).usleep(900_000)
    theirs.setblocking(False)
    num_beats = len(theirs.recv(4096)) // 4
    rank.stop()
    assert num_beats >= 3


def test_a_rank_says_where_its_threads_are_when_asked(pair, beats):
    ours, theirs = pair
    rank = RankPulse(ours, 0, beats)
    receive_frame(theirs)
    send_frame(theirs, b"")
    while not (text := receive_frame(theirs)):
        pass
    rank.stop()
    assert b"test_a_rank_says_where_its_threads_are_when_asked" in text
    assert len(text) <= pulse.MAX_STACKS_BYTES


def test_a_rank_whose_leader_is_gone_ends(pair, beats, monkeypatch):
    ours, theirs = pair
    exits: queue.Queue[int] = queue.Queue()
    monkeypatch.setattr(pulse.os, "_exit", exits.put)
    rank = RankPulse(ours, 0, beats)
    theirs.close()
    assert exits.get(timeout=TIMEOUT_S) == pulse.EXIT_LEADER_GONE
    rank.stop()


def test_the_end_of_a_pulse_is_heard_at_once(pair, watch):
    ours, theirs = pair
    ranks, lost = watch(frozen_after_s=60)
    ranks.add(1, PulseConnection(ours, needs_gil=False))
    theirs.close()
    assert lost.get(timeout=TIMEOUT_S) == (1, GONE)


def test_a_silent_rank_is_frozen_and_one_that_beats_is_not(pair, watch):
    silent, _kept = socket.socketpair()
    ours, theirs = pair
    ranks, lost = watch(frozen_after_s=0.5)
    ranks.add(0, PulseConnection(ours, needs_gil=False))
    ranks.add(1, PulseConnection(silent, needs_gil=False), os.getpid())
    heart = PythonBeats()
    heart.start(theirs)
    seat, what = lost.get(timeout=TIMEOUT_S)
    assert seat == 1
    assert what.startswith("frozen: no sign of life for 0.")
    assert ranks.silences_s().keys() == {0}
    heart.stop()


def test_a_rank_whose_pulse_needs_the_interpreter_lock_is_given_more_time(pair, watch):
    silent, _kept = socket.socketpair()
    ranks, lost = watch(frozen_after_s=0.3)
    ranks.add(0, PulseConnection(pair[0], needs_gil=True), os.getpid())
    ranks.add(1, PulseConnection(silent, needs_gil=False), os.getpid())
    assert lost.get(timeout=TIMEOUT_S)[0] == 1
    with pytest.raises(queue.Empty):
        lost.get(timeout=0.3)


def test_a_rank_of_another_machine_is_given_more_time(pair, watch):
    silent, _kept = socket.socketpair()
    ranks, lost = watch(frozen_after_s=0.5)
    ranks.add(0, PulseConnection(pair[0], needs_gil=False))
    ranks.add(1, PulseConnection(silent, needs_gil=False), os.getpid())
    assert lost.get(timeout=TIMEOUT_S)[0] == 1
    with pytest.raises(queue.Empty):
        lost.get(timeout=0.2)


def test_a_leader_that_did_not_run_itself_blames_nobody(pair, watch):
    clock = FakeClock()
    ranks, lost = watch(2.0, clock)
    ranks.add(0, PulseConnection(pair[0], needs_gil=False))
    # As if the whole machine had been stopped.
    clock.advance(3600.0)
    with pytest.raises(queue.Empty):
        lost.get(timeout=0.5)


def test_stacks_are_asked_of_those_that_live_and_the_frozen_are_not_waited_for(pair, watch):
    silent, _kept = socket.socketpair()
    ours, theirs = pair
    ranks, _ = watch(frozen_after_s=60)
    ranks.add(0, PulseConnection(ours, needs_gil=False))
    ranks.add(1, PulseConnection(silent, needs_gil=False))

    def answer() -> None:
        receive_frame(theirs)
        send_frame(theirs, b"in all_reduce")

    threading.Thread(target=answer).start()
    assert ranks.stacks(0.5) == {0: "in all_reduce"}


def test_a_rank_that_was_dismissed_is_not_missed(pair, watch):
    ours, theirs = pair
    ranks, lost = watch(frozen_after_s=60)
    ranks.add(1, PulseConnection(ours, needs_gil=False))
    ranks.remove(1)
    theirs.close()
    with pytest.raises(queue.Empty):
        lost.get(timeout=0.3)


@pytest.mark.parametrize(
    ("stat", "expected"),
    [
        (b"7 (ray::Rank) x) S 1 1 1 0 -1 4194560 9 9", False),
        (b"7 (ray::Rank) x) R 1 1 1 0 -1 4194564 9 9", True),
        (b"7 (python) Z 1 1 1 0 -1 4194560 9 9", True),
    ],
)
def test_a_process_that_has_begun_to_end_is_known_by_its_state_or_flags(tmp_path, stat, expected):
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_bytes(stat)
    assert is_exiting(7, tmp_path) is expected
    assert not is_exiting(8, tmp_path), "of one that is not there its connection will tell"
