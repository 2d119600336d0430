"""Waiting ends: by what was waited for, by a limit, or by a stop."""

from collections.abc import Callable
from threading import Event

import pytest

from cluster.node.errors import BootFailed, NotYet, StopRequested
from tests.support.node_machines import quick_patience


def after(failures: int) -> Callable[[], str]:
    left = [failures]

    def attempt() -> str:
        if left[0]:
            left[0] -= 1
            raise NotYet("the bucket is not there")
        return "there"

    return attempt


def test_pauses_grow_up_to_the_longest():
    pauses: list[float] = []
    patience = quick_patience(pauses=pauses)
    assert patience.until(after(6), limit_s=100, first_pause_s=1, longest_pause_s=5) == "there"
    assert pauses == [1, 2, 4, 5, 5, 5]


def test_limit_gives_the_last_reason_and_how_long_it_was_waited_for():
    with pytest.raises(BootFailed, match=r"the bucket is not there \(given up after 7 s\)"):
        quick_patience().until(after(100), limit_s=10)


def test_stop_ends_the_wait():
    stop = Event()
    stop.set()
    with pytest.raises(StopRequested):
        quick_patience(stop).until(after(100), limit_s=1000)


def test_other_errors_are_not_waited_for():
    def attempt() -> None:
        raise BootFailed("a disk holds data")

    with pytest.raises(BootFailed, match="a disk holds data"):
        quick_patience().until(attempt, limit_s=1000)
