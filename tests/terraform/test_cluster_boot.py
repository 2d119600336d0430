"""The user data of the applied example, executed: head and workers become a cluster that serves, and outlive the head.

The tests are steps of one story, in the order of the file. What each machine said is in the message of a failure.
"""

import time

import pytest

from benchmarks.faults.namespaces import CannotMakeHosts
from tests.terraform.harness.example_cluster import API_KEY, MODEL, find_model
from tests.terraform.harness.lab import Lab
from tests.terraform.harness.load_balancer import LoadBalancer

pytestmark = pytest.mark.timeout(400)

BOOT_LIMIT_S = 240.0
REPLACE_LIMIT_S = 120.0
DEAD_S = 10.0
QUESTION = "What is the capital of France?"
NUM_WARM_UP = 20
RANK, LEADER = "ray::RankActor", "ray::ServeReplica:"


@pytest.fixture(scope="module")
def lab(cluster, tmp_path_factory):
    cluster.upload_weights(find_model())
    try:
        with Lab(cluster, tmp_path_factory.mktemp("hosts")) as made:
            yield made
    except CannotMakeHosts as reason:
        pytest.skip(f"no hosts on this machine: {reason}")


@pytest.fixture(scope="module")
def balancer(lab) -> LoadBalancer:
    return LoadBalancer(lab.lan, MODEL, API_KEY)


@pytest.fixture(scope="module")
def serving(lab, balancer, report) -> str:
    """Address of a worker that passes the health check; all machines were switched on at the same time."""
    with report.step("boot until an answer"):
        for host in lab.hosts:
            host.power_on()
        (address,) = wait_for(lambda: healthy(lab, balancer)[:1], BOOT_LIMIT_S, lab)
    for host in lab.hosts:
        report.note(f"memory of {host.name}", f"{host.memory_gib():.2f} GiB")
    return address


def healthy(lab: Lab, balancer: LoadBalancer) -> list[str]:
    return [host.instance.address for host in lab.workers if balancer.is_healthy(host.instance.address)]


def wait_for(look, limit_s: float, lab: Lab):
    """Return the first true result; fails with what the hosts said."""
    deadline_s = time.monotonic() + limit_s
    while time.monotonic() < deadline_s:
        if result := look():
            return result
        time.sleep(0.5)
    pytest.fail(f"not within {limit_s:g} s\n{lab.last_words()}")


def node_status(lab: Lab, **environment: str) -> str:
    python = lab.head.instance.user_data.split("python='")[1].split("'")[0]
    return lab.head.run(python, "-m", "cluster.node", "status", environment=environment)


def test_the_cluster_that_booted_answers_through_the_load_balancer(lab, balancer, serving):
    reply = balancer.ask(serving, QUESTION)
    assert reply.status == 200, f"{reply}\n{lab.last_words()}"
    assert "Paris" in reply.text


def test_head_and_workers_are_nodes_of_one_cluster(lab, serving):
    status = node_status(lab)
    assert "3 nodes alive" in status
    for host in lab.hosts:
        assert host.instance.address in status
        assert host.instance.instance_id in status
    assert status.count("GPU 8") == 2
