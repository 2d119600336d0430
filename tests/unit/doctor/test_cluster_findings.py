"""What the doctor says of a Ray cluster, from facts that are given."""

import msgspec
import pytest

from deployments.doctor.cluster import checks
from deployments.doctor.cluster.facts import ApplicationFacts, ClusterFacts, NodeFacts, PlacementFacts
from deployments.doctor.cluster.probes import with_token

NODE = NodeFacts("10.0.0.1", is_alive=True, is_draining=False, why_dead="", gpus=8, cpus=96)
TOTAL = {"CPU": 96.0, "GPU": 8.0}
CLUSTER = ClusterFacts("2.60.0", [NODE], [], [ApplicationFacts("m", "RUNNING", "")], {"n1": "HEALTHY"}, TOTAL, TOTAL)


def levels(findings):
    return {(finding.level, finding.check) for finding in findings}


def changed(**changes):
    return list(checks.check(msgspec.structs.replace(CLUSTER, **changes)))


def test_a_sound_cluster_is_ok_throughout():
    assert {level for level, _ in levels(checks.check(CLUSTER))} == {"ok"}


def test_facts_survive_the_way_between_processes():
    assert msgspec.json.decode(msgspec.json.encode(CLUSTER), type=ClusterFacts) == CLUSTER


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"nodes": [msgspec.structs.replace(NODE, is_draining=True)]}, ("note", "ray.nodes")),
        ({"nodes": [NODE, msgspec.structs.replace(NODE, is_alive=False, why_dead="heartbeat")]}, ("note", "ray.nodes")),
        ({"waiting": [PlacementFacts("pg", "PENDING", [{"GPU": 1.0}])]}, ("warning", "ray.placement")),
        ({"applications": []}, ("problem", "ray.applications")),
        ({"applications": [ApplicationFacts("m", "DEPLOYING", "")]}, ("note", "ray.applications")),
        ({"applications": [ApplicationFacts("m", "UNHEALTHY", "it broke")]}, ("problem", "ray.applications")),
        ({"gaps": ["which nodes drain: RpcError: Deadline Exceeded"]}, ("warning", "ray.gcs")),
        ({"proxies": {"n1": "UNHEALTHY"}}, ("warning", "ray.proxies")),
    ],
)
def test_each_fault_is_found(changes, finding):
    assert finding in levels(changed(**changes))


def test_a_serve_that_does_not_answer_is_not_taken_for_one_without_applications():
    findings = changed(applications=[], proxies={}, gaps=["Serve: TimeoutError: no answer"])
    assert levels(findings) == {("ok", "ray.gcs"), ("warning", "ray.gcs")}


def test_what_waits_for_room_is_told_with_what_is_free():
    bundles = [{"GPU": 1.0, "CPU": 2.0}] * 8
    (text,) = [
        finding.found
        for finding in changed(waiting=[PlacementFacts("pg-1", "PENDING", bundles)], free={"CPU": 4.0})
        if finding.check == "ray.placement"
    ]
    assert text == "8 x (CPU 2, GPU 1) wait for room (placement group pg-1, PENDING); free: CPU 4, GPU 0"


def test_of_serves_long_message_the_error_itself_is_told():
    message = "Deploying failed...\nTraceback\ncore.errors.Unshardable: heads=3 cannot be split\n\nthe replica died"
    (finding,) = [
        finding
        for finding in changed(applications=[ApplicationFacts("m", "DEPLOY_FAILED", message)])
        if finding.check == "ray.applications"
    ]
    assert finding.found == "m is DEPLOY_FAILED: Unshardable: heads=3 cannot be split"


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("RuntimeError: Version mismatch: Ray 2.59", "the cluster's own Ray and Python"),
        ("AuthenticationError: Invalid token", "RAY_AUTH_TOKEN_PATH"),
        ("no answer within 60 s", "GCS port (6379)"),
    ],
)
def test_why_a_cluster_cannot_be_asked_decides_what_to_do(reason, advice):
    (finding,) = checks.check_no_answer(reason)
    assert (finding.level, finding.check) == ("problem", "ray.gcs")
    assert advice in finding.advice


def test_a_token_that_is_there_is_sent_unless_the_environment_says_otherwise(tmp_path):
    path = tmp_path / "token"
    here = {"RAY_AUTH_TOKEN_PATH": str(path)}
    assert with_token(here) == here
    path.write_text("secret")
    assert with_token(here) == here | {"RAY_AUTH_MODE": "token"}
    assert with_token(here | {"RAY_AUTH_MODE": "disabled"})["RAY_AUTH_MODE"] == "disabled"
