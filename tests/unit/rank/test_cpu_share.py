"""A rank that gets less of its machine than configured says what is missing."""

import pytest

from parallel.rank.cpu_share import shortfalls, take_cpu
from parallel.rank.messages import CpuShare


def test_a_rank_that_has_what_it_asked_for_says_nothing():
    assert shortfalls(2, CpuShare(num_threads=2, num_cores=2, niceness=0)) == []


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (CpuShare(num_threads=1, num_cores=2, niceness=0), "1 of 2 threads compute"),
        (CpuShare(num_threads=2, num_cores=1, niceness=0), "2 threads share 1 of the cores"),
        (CpuShare(num_threads=2, num_cores=2, niceness=15), "niceness is 15"),
    ],
    ids=["threads", "cores", "niceness"],
)
def test_each_thing_that_is_missing_is_named(share, said):
    (reason,) = shortfalls(2, share)
    assert reason.startswith(said)


def test_what_is_told_is_what_torch_runs(monkeypatch):
    monkeypatch.setattr("parallel.rank.cpu_share.take_normal_priority", lambda: 7)
    share = take_cpu(1)
    assert (share.num_threads, share.niceness) == (1, 7)
