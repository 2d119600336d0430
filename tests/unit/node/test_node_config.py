"""What a machine is told about itself is checked before anything is done with it."""

import json

import pytest

from cluster.node.config import NodeConfig, RedisStore, RocksdbStore
from core.errors import InvalidConfig
from tests.support.node_machines import HEAD, WORKER


def refusal(data: dict[str, object]) -> str:
    with pytest.raises(InvalidConfig) as error:
        NodeConfig.parse(data, "node.json")
    return error.value.message


def test_head_without_a_group_takes_no_work():
    assert not NodeConfig.parse(HEAD, "node.json").takes_work
    assert NodeConfig.parse(HEAD | {"group": "all", "num_gpus": 1}, "node.json").takes_work


def test_store_of_the_head_is_chosen_by_its_kind():
    rocksdb = NodeConfig.parse(HEAD | {"gcs": {"kind": "rocksdb", "volume": "/dev/sdf"}}, "node.json").gcs
    assert rocksdb == RocksdbStore(kind="rocksdb", volume="/dev/sdf")
    redis = NodeConfig.parse(HEAD | {"gcs": {"kind": "redis", "address": "rediss://r.internal:6379"}}, "node.json").gcs
    assert isinstance(redis, RedisStore)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"numgpus": 1}, "numgpus"),
        ({"gcs": {"kind": "etcd"}}, "gcs"),
        ({"gcs": {"kind": "rocksdb", "volume": "sdf"}}, "volume"),
        ({"gcs": {"kind": "redis", "address": "redis.internal"}}, "address"),
        ({"gcs": None}, "a head needs gcs"),
        ({"num_gpus": 4}, "num_gpus=4 on a head without group"),
        ({"serve_config": "serve.yaml"}, "ssm:/PARAMETER or s3://BUCKET/KEY"),
        ({"serve_config": "s3://bucket"}, "ssm:/PARAMETER or s3://BUCKET/KEY"),
        ({"weights_cache": "weights"}, "absolute path"),
        ({"cluster": "Smoke Test"}, "cluster"),
    ],
)
def test_head_that_cannot_work_is_refused_with_the_key(change: dict[str, object], named: str):
    assert named in refusal(HEAD | change)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"group": None, "num_gpus": 0}, "a worker needs group"), ({"autoscaling_group": None}, "launch_hook needs")],
)
def test_worker_that_cannot_work_is_refused_with_the_key(change: dict[str, object], named: str):
    assert named in refusal(WORKER | change)


def test_worker_group_that_must_be_larger_than_it_may_is_refused():
    group = {"name": "g", "autoscaling_group": "a", "nodes_per_replica": 2, "gpus_per_node": 8}
    assert "min_size=4 is more than max_size=2" in refusal(
        HEAD | {"worker_groups": [group | {"min_size": 4, "max_size": 2}]}
    )


def test_file_is_named_when_it_is_missing_or_broken(tmp_path):
    with pytest.raises(InvalidConfig, match=r"missing\.json: cannot be read \(No such file"):
        NodeConfig.load(tmp_path / "missing.json")
    (tmp_path / "node.json").write_text('{"cluster": ')
    with pytest.raises(InvalidConfig, match=r"node\.json: not valid JSON"):
        NodeConfig.load(tmp_path / "node.json")


def test_file_is_read(tmp_path):
    (tmp_path / "node.json").write_text(json.dumps(WORKER))
    assert NodeConfig.load(tmp_path / "node.json").autoscaling_group == "smoke-h100"
