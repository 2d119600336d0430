"""`terraform apply` of h100-multinode against moto: everything is made, and nothing secret is written down."""

import collections
import zipfile

import pytest

from cluster.node.config import NodeConfig
from tests.terraform.harness.example_cluster import PLAN, STATE
from tests.terraform.harness.terraform_cli import Change

pytestmark = pytest.mark.timeout(500)


def test_the_machines_that_the_example_promises_run(cluster):
    kinds = collections.Counter((one.node["role"], one.instance_type) for one in cluster.instances())
    assert kinds == {("head", "m7i.2xlarge"): 1, ("worker", "p5.48xlarge"): 2}


def test_every_machine_is_told_the_address_that_the_head_has(cluster):
    head, *workers = cluster.instances()
    assert {one.node["head_address"] for one in [head, *workers]} == {head.address}
    assert cluster.terraform.outputs()["head_private_ip"] == head.address


def test_every_machine_understands_what_it_is_told(cluster):
    for one in cluster.instances():
        config = NodeConfig.parse(one.node, one.instance_id)
        assert config.is_head == (config.num_gpus == 0)
        assert config.efa == (not config.is_head)


def test_machines_boot_what_the_plan_rendered(cluster):
    rendered = cluster.terraform.outputs()["user_data"]
    head, *workers = cluster.instances()
    assert head.user_data == rendered["head"]
    assert [worker.user_data for worker in workers] == [rendered["h100"]] * 2


def test_the_token_is_in_neither_state_nor_plan(cluster):
    token = cluster.token()
    assert len(token) >= 32
    folder = cluster.terraform.folder
    assert token not in (folder / STATE).read_text()
    with zipfile.ZipFile(folder / PLAN) as plan:
        assert plan.namelist()
        assert not any(token.encode() in plan.read(name) for name in plan.namelist())


def test_no_machine_is_told_the_token(cluster):
    token = cluster.token()
    assert not any(token in one.user_data for one in cluster.instances())


def test_a_second_plan_with_another_serve_config_replaces_nothing(cluster):
    """Not `changes nothing else`: moto forgets some tags, and answers with fields that nobody set."""
    config = cluster.terraform.folder / "lab.yaml"
    before = config.read_text()
    config.write_text(before.replace("max_model_len: 512", "max_model_len: 256"))
    try:
        changes = cluster.plan_again()
    finally:
        config.write_text(before)
    assert Change("module.cluster.aws_ssm_parameter.serve_config[0]", ("update",)) in changes
    assert [change for change in changes if "delete" in change.actions] == []
