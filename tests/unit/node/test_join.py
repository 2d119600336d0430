"""A machine has joined when the cluster says so, and a start that fails is made again."""

import socket
from threading import Event

import pytest

from cluster.node.errors import BootFailed, NotYet, StopRequested
from cluster.node.join import check_reachable, join_cluster
from tests.support.node_machines import FakeRay, quick_patience


def not_a_member(start_id: str) -> None:
    raise NotYet("the cluster does not count i-0abc as alive")


def test_running_ray_is_not_enough_until_the_cluster_counts_the_node():
    asked: list[int] = []

    def check_member(start_id: str) -> None:
        asked.append(1)
        if len(asked) < 3:
            not_a_member(start_id)

    ray = FakeRay()
    assert join_cluster(lambda start_id: ray, check_member, quick_patience()) is ray
    assert len(asked) == 3
    assert not ray.is_stopped


def test_ray_that_ends_is_started_again_and_nothing_is_left_of_it():
    broken, sound = FakeRay(exit_code=1), FakeRay()
    processes = [broken, sound]
    assert join_cluster(lambda start_id: processes.pop(0), lambda start_id: None, quick_patience()) is sound
    assert broken.is_stopped


def test_ray_that_never_registers_is_started_again():
    lost, sound = FakeRay(), FakeRay()
    processes = [lost, sound]

    def check_member(start_id: str) -> None:
        if not lost.is_stopped:
            not_a_member(start_id)

    assert join_cluster(lambda start_id: processes.pop(0), check_member, quick_patience()) is sound


def test_each_start_is_looked_for_by_its_own_id():
    started, looked_for = [], []
    processes = [FakeRay(exit_code=1), FakeRay()]

    def start(start_id: str) -> FakeRay:
        started.append(start_id)
        return processes.pop(0)

    join_cluster(start, looked_for.append, quick_patience())
    assert len(set(started)) == 2
    assert looked_for == started[1:]


def test_machine_that_cannot_join_says_what_ray_said_last():
    with pytest.raises(
        BootFailed, match=r"`ray start` ended with 1; its last words: Exception: The current node timed"
    ):
        join_cluster(lambda start_id: FakeRay(exit_code=1), lambda start_id: None, quick_patience())


def test_stop_leaves_no_ray_behind():
    stop, ray = Event(), FakeRay()
    stop.set()
    with pytest.raises(StopRequested):
        join_cluster(lambda start_id: ray, not_a_member, quick_patience(stop))
    assert ray.is_stopped


def test_head_that_does_not_answer_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(NotYet, match=rf"head does not answer at 127.0.0.1:{port}.*security group"):
            check_reachable("127.0.0.1", port)
        taken.listen()
        check_reachable("127.0.0.1", port)
