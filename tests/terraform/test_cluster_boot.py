"""The user data of the applied example, executed: head and workers become a cluster that serves, and outlive the head.

The tests are steps of one story, in the order of the file. What each machine said is in the message of a failure.
"""

import socket
import subprocess
import time

import pytest

from benchmarks.faults.namespaces import CannotMakeHosts
from tests.terraform.harness.example_cluster import API_KEY, MODEL, find_model
from tests.terraform.harness.hosts import PYTHON, Host
from tests.terraform.harness.lab import Lab
from tests.terraform.harness.lan import METADATA_ADDRESS
from tests.terraform.harness.load_balancer import LoadBalancer

pytestmark = pytest.mark.timeout(600)

BOOT_LIMIT_S = 300.0
REPLACE_LIMIT_S = 240.0
DEAD_S = 10.0
QUESTION = "What is the capital of France?"
NUM_WARM_UP = 20
RANK_TITLE = "ray::RankActor"
SERVE_DUTY_DONE = '"message": "boot step done", "step": "serve"'
DASHBOARD_PORT = 8265


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


def node_status(host: Host, **environment: str) -> str:
    return host.run(str(PYTHON), "-m", "cluster.node", "status", environment=environment)


def ranks(host: Host) -> list[int]:
    return [process.pid for process in host.processes(RANK_TITLE)]


def test_the_cluster_that_booted_answers_through_the_load_balancer(lab, balancer, serving):
    reply = balancer.ask(serving, QUESTION)
    assert reply.status == 200, f"{reply}\n{lab.last_words()}"
    assert "Paris" in reply.text


def test_a_rank_on_each_worker_computes_and_none_on_the_head(lab, serving):
    assert [len(ranks(host)) for host in lab.hosts] == [0, 1, 1]


def test_weights_came_from_the_bucket_to_each_worker(lab, serving):
    for worker in lab.workers:
        cache = worker.disk / "var" / "lib" / "eagleray" / "weights"
        sizes = [path.stat().st_size for path in cache.rglob("*") if path.is_file()]
        assert find_model().stat().st_size in sizes, f"{worker.name} has files of {sizes} bytes"


def test_head_and_workers_are_nodes_of_one_cluster(lab, serving):
    status = node_status(lab.head)
    assert "3 nodes alive" in status
    assert status.count("GPU 8") == 2
    for host in lab.hosts:
        assert host.instance.address in status
        assert host.instance.instance_id in status


def test_workers_told_their_launch_hook_to_carry_on(lab, cluster, serving):
    assert cluster.aws.hook_results == {worker.instance.instance_id: "CONTINUE" for worker in lab.workers}


def test_metadata_is_refused_to_who_asks_without_a_session_token(lab, serving):
    """So the machines, which know who they are, have asked as version 2 of the service wants it."""
    num_refused = lab.metadata.num_refused  # Ray itself looks for clouds in the old way, and can do without
    url = f"http://{METADATA_ADDRESS}/latest/meta-data/instance-id"
    with pytest.raises(subprocess.CalledProcessError) as refused:
        lab.head.run("curl", "--silent", "--fail", "--max-time", "5", url)
    assert refused.value.returncode == 22, "an HTTP error"
    assert lab.metadata.num_refused == num_refused + 1


def test_the_token_is_in_memory_and_for_root_alone(lab, cluster, serving):
    for host in lab.hosts:
        assert host.run("stat", "--format", "%a %U", "/run/eagleray/token").split() == ["600", "root"]
        assert host.run("findmnt", "--noheadings", "--output", "FSTYPE", "--target", "/run/eagleray").strip() == "tmpfs"
        assert cluster.token() not in host.log.read_text()


def test_whoever_has_another_token_is_refused(lab, serving):
    worker = lab.workers[0]
    (worker.disk / "tmp" / "another-token").write_text("0" * 48)
    with pytest.raises(subprocess.CalledProcessError) as refused:
        node_status(worker, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH="/tmp/another-token")
    assert "nodes alive" not in refused.value.output
    assert "token" in refused.value.output.lower()


def test_whoever_has_no_api_key_is_refused(balancer, serving):
    assert balancer.ask(serving, QUESTION, api_key="sk-of-nobody").status == 401


def test_the_dashboard_is_not_on_the_network(lab, serving):
    def connect() -> None:
        socket.create_connection((lab.head.instance.address, DASHBOARD_PORT), timeout=5).close()

    with pytest.raises(ConnectionRefusedError):
        lab.lan.run(connect).result()


def test_requests_go_on_while_the_head_dies_and_is_replaced(lab, balancer, serving, report):
    """The replacement runs the same user data at the same address, with the volume of the former one."""
    before = [ranks(worker) for worker in lab.workers]
    usual = {balancer.ask(serving, QUESTION).text for _ in range(NUM_WARM_UP)}
    with balancer.traffic(serving, QUESTION) as while_dead:
        lab.head.power_off()
        time.sleep(DEAD_S)
    with balancer.traffic(serving, QUESTION) as while_replaced, report.step("head replaced"):
        lab.head.power_on()
        wait_for(lambda: lab.head.log.read_text().count(SERVE_DUTY_DONE) == 2, REPLACE_LIMIT_S, lab)
    report.note("requests without a head", f"{len(while_dead.replies)}, failed {len(while_dead.failures)}")
    report.note(
        "requests while it was replaced", f"{len(while_replaced.replies)}, failed {len(while_replaced.failures)}"
    )
    replies = while_dead.replies + while_replaced.replies
    assert len(while_dead.replies) > 10
    assert [reply for reply in replies if reply.status != 200] == [], lab.last_words()
    assert {reply.text for reply in replies} == usual
    assert [ranks(worker) for worker in lab.workers] == before, "ranks were replaced"


def test_the_cluster_is_whole_with_the_new_head(lab, balancer, serving):
    assert "3 nodes alive" in node_status(lab.head)
    assert serving in healthy(lab, balancer)
    assert "Paris" in balancer.ask(serving, QUESTION).text
