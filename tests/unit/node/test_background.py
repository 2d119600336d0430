"""A loop that breaks is begun again; one that ends is not."""

import threading

import pytest

from cluster.node.background import Background
from cluster.node.errors import StopRequested


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_broken_loop_is_begun_again():
    runs: list[int] = []
    is_done = threading.Event()

    def body() -> None:
        runs.append(1)
        if len(runs) == 1:
            raise ValueError("an answer nobody expected")
        is_done.set()

    background = Background()
    background.run("scaling", body)
    background.join(5)
    background.revive()
    assert is_done.wait(5)


def test_loop_that_ended_is_left_so():
    runs: list[int] = []

    def body() -> None:
        runs.append(1)
        if len(runs) == 2:
            raise StopRequested

    background = Background()
    for _ in range(2):
        background.run("serve", body)
        background.join(5)
        background.revive()
    background.join(5)
    assert len(runs) == 2
