import pytest

from cluster.config import ReplicaGroupConfig, RestartConfig
from core.errors import InvalidConfig


def test_the_first_restart_is_immediate_and_the_next_ones_wait_twice_as_long_each():
    restart = RestartConfig(backoff_s=0.5)
    assert [restart.pause_s(failures) for failures in (1, 2, 3, 4)] == [0.0, 0.5, 1.0, 2.0]


def test_an_unknown_key_is_refused_with_its_path_and_value():
    data = {"name": "m", "model": {"source": "x"}, "parallel": {"tensor_paralel_size": 2}}
    with pytest.raises(InvalidConfig, match=r"here: parallel.tensor_paralel_size: .* \(got 2\)"):
        ReplicaGroupConfig.parse(data, "here")


def test_the_engine_reads_what_the_group_was_given():
    data = {"name": "m", "model": {"source": "x"}, "cache": {"memory": "1GiB"}, "scheduler": {"max_running": 3}}
    engine = ReplicaGroupConfig.parse(data, "here").engine
    assert engine.cache.memory == 2**30
    assert engine.scheduler.max_running == 3
