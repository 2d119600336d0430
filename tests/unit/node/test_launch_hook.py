"""The Auto Scaling group learns once whether a machine is of use."""

import boto3
import pytest
from botocore.stub import Stubber

from cluster.node.launch_hook import LaunchHook
from tests.support.node_machines import quick_patience

ACTION = "complete_lifecycle_action"


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    client = boto3.client("autoscaling", region_name="eu-west-1")
    with Stubber(client) as stub:
        yield client, stub


def hook(client: object) -> LaunchHook:
    return LaunchHook(client, name="join", group="smoke-h100", instance_id="i-0abc", patience=quick_patience())


def expected(result: str) -> dict[str, str]:
    return {
        "LifecycleHookName": "join",
        "AutoScalingGroupName": "smoke-h100",
        "InstanceId": "i-0abc",
        "LifecycleActionResult": result,
    }


def test_machine_that_joined_is_put_in_service(group):
    client, stub = group
    stub.add_response(ACTION, {}, expected("CONTINUE"))
    hook(client).carry_on()
    stub.assert_no_pending_responses()


def test_machine_that_failed_is_given_back_with_the_reason_in_the_log(group, caplog: pytest.LogCaptureFixture):
    client, stub = group
    stub.add_response(ACTION, {}, expected("ABANDON"))
    with caplog.at_level("INFO", "cluster.node.launch_hook"):
        hook(client).abandon("nvidia-smi shows 7 GPUs")
    stub.assert_no_pending_responses()
    assert [(record.result, record.reason) for record in caplog.records] == [("ABANDON", "nvidia-smi shows 7 GPUs")]


def test_restarted_node_has_no_hook_to_complete(group, caplog: pytest.LogCaptureFixture):
    client, stub = group
    stub.add_client_error(ACTION, "ValidationError", "No active Lifecycle Action found with instance ID i-0abc")
    with caplog.at_level("ERROR", "cluster.node.launch_hook"):
        hook(client).carry_on()
    assert not caplog.records


def test_throttling_is_sat_out(group):
    client, stub = group
    stub.add_client_error(ACTION, "Throttling", "Rate exceeded", http_status_code=400)
    stub.add_client_error(ACTION, "AccessDenied", "not authorized")
    stub.add_response(ACTION, {}, expected("CONTINUE"))
    hook(client).carry_on()
    stub.assert_no_pending_responses()


def test_hook_that_cannot_be_completed_does_not_end_the_node(group, caplog: pytest.LogCaptureFixture):
    client, stub = group
    for _ in range(50):
        stub.add_client_error(ACTION, "AccessDenied", "not authorized")
    with caplog.at_level("ERROR", "cluster.node.launch_hook"):
        hook(client).carry_on()
    assert "allow it in the role of the machine" in caplog.records[0].error
