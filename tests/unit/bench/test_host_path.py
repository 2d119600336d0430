"""The figures of the host path are microseconds a step, and the plain leader does the work it is measured for."""

import threading
from multiprocessing import Pipe

from benchmarks.host_path import engine_window, figures
from benchmarks.per_object import PARTS, PerObjectLeader, play_plain_gateway, play_plain_rank
from engine.stats import EngineStats


def test_a_window_is_the_difference_of_two_readings_per_step():
    before = EngineStats(num_steps=10, plan_s=1.0, receive_s=2.0)
    after = EngineStats(num_steps=20, plan_s=1.001, receive_s=2.002)
    window = engine_window(before, after)
    assert {name: round(us) for name, us in window.items() if us} == {"plan": 100, "receive": 200}


def test_figures_are_the_median_of_windows_and_the_least_beside_it():
    windows = [{"plan": 1.0, "commit": 10.0}, {"plan": 2.0, "commit": 20.0}, {"plan": 9.0, "commit": 90.0}]
    assert figures(windows) == {
        "us_per_step": 22.0,
        "least_us_per_step": 11.0,
        "parts_us": {"plan": 2.0, "commit": 20.0},
    }


def test_the_plain_leader_grows_tables_and_names_full_blocks():
    rank, rank_end = Pipe()
    gateway, gateway_end = Pipe()
    threads = [
        threading.Thread(target=play_plain_rank, args=(rank_end, 3, 0.0)),
        threading.Thread(target=play_plain_gateway, args=(gateway_end,)),
    ]
    for thread in threads:
        thread.start()
    leader = PerObjectLeader([16, 15, 14], 16, rank, gateway)
    for _ in range(20):
        assert len(leader.step()) == len(PARTS)
    rank.close()
    gateway.close()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    # Tokens are computed up to the newest: 35, 34 and 33 of them, so each has two full blocks and a third begun.
    assert [len(request.token_ids) for request in leader._requests] == [36, 35, 34]
    assert [len(request.block_ids) for request in leader._requests] == [3, 3, 3]
    assert len(leader._cached) > 0
