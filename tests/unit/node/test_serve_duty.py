"""The head deploys once the cluster is up, and goes on trying where that fails."""

from threading import Event

import msgspec
import pytest

from cluster.node import serve_duty
from cluster.node.config import NodeConfig
from cluster.node.errors import BootFailed, NotYet, StopRequested
from cluster.node.members import Member
from cluster.node.serve_api import Application
from cluster.node.serve_config import ServeConfig
from cluster.node.serve_duty import ServeDuty
from tests.support.node_machines import HEAD, RecordedCommands, failed, quick_patience

YAML = "applications: [{name: gateway, import_path: 'deployments.app:gateway', route_prefix: /}]"
GROUP = {
    "name": "h100",
    "autoscaling_group": "smoke-h100",
    "nodes_per_replica": 2,
    "gpus_per_node": 8,
    "min_size": 2,
    "max_size": 4,
}


class RecordedApi:
    """Serve that has every application running as soon as it is deployed, after `failures` that could not be."""

    def __init__(self, failures: int = 0) -> None:
        self.deployed: list[ServeConfig] = []
        self._failures = failures

    def applications(self) -> dict[str, Application]:
        if not self.deployed:
            return {}
        status = "DEPLOY_FAILED" if len(self.deployed) <= self._failures else "RUNNING"
        return {a["name"]: Application(status, "no module named x", a) for a in self.deployed[-1]["applications"]}

    def deploy(self, config: ServeConfig) -> None:
        self.deployed.append(config)


@pytest.fixture(autouse=True)
def stored_yaml(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is at the location; an empty list: nothing."""
    stored = [YAML]

    def fetch(location: str, region: str) -> str:
        if not stored:
            raise NotYet(f"Serve config {location} does not exist")
        return stored[0]

    monkeypatch.setattr(serve_duty, "fetch_serve_config", fetch)
    return stored


def duty(
    api: RecordedApi,
    commands: RecordedCommands | None = None,
    stop: Event | None = None,
    pauses: list[float] | None = None,
    **fields: object,
) -> ServeDuty:
    config = NodeConfig.parse(HEAD | {"serve_config": "ssm:/smoke/serve"} | fields, "test")
    commands = commands or RecordedCommands({"deployments.check": ""})
    return ServeDuty(config, "ssm:/smoke/serve", api, commands, quick_patience(stop, pauses))


def nodes(number: int) -> str:
    return msgspec.json.encode([Member(str(i), f"10.64.0.{i}", True, {}, {}) for i in range(number)]).decode()


def test_config_is_deployed_with_what_a_cluster_needs():
    api = RecordedApi()
    duty(api).fulfil()
    assert [config["proxy_location"] for config in api.deployed] == ["EveryNode"]


def test_deployment_waits_for_the_fewest_machines_of_each_group():
    api = RecordedApi()

    class Growing(RecordedCommands):
        def run(self, *command: str, timeout_s: float = 60.0) -> str:
            self.answers["cluster.node status"] = nodes(min(len(self.lines) + 1, 3))
            assert not api.deployed
            return super().run(*command, timeout_s=timeout_s)

    commands = Growing({"deployments.check": ""})
    duty(api, commands, worker_groups=[GROUP]).fulfil()
    assert sum("cluster.node status" in line for line in commands.lines) == 3
    assert len(api.deployed) == 1


def test_machines_that_never_come_do_not_keep_the_rest_from_serving():
    api = RecordedApi()
    duty(
        api, RecordedCommands({"deployments.check": "", "cluster.node status": nodes(1)}), worker_groups=[GROUP]
    ).fulfil()
    assert len(api.deployed) == 1


def test_application_that_failed_is_deployed_again_after_a_pause(caplog: pytest.LogCaptureFixture):
    api, pauses = RecordedApi(failures=2), []
    with caplog.at_level("ERROR", "cluster.node.serve_duty"):
        duty(api, pauses=pauses).fulfil()
    assert len(api.deployed) == 3
    assert pauses == [60.0, 60.0]
    assert "application gateway cannot be started: no module named x" in caplog.records[0].error


def test_config_that_is_corrected_later_is_deployed_then():
    api, pauses = RecordedApi(), []

    class Corrected(RecordedCommands):
        def run(self, *command: str, timeout_s: float = 60.0) -> str:
            if pauses:
                self.answers["deployments.check"] = ""
            return super().run(*command, timeout_s=timeout_s)

    problem = failed("python", output="applications.0.argz: unknown key")
    duty(api, Corrected({"deployments.check": problem}), pauses=pauses).fulfil()
    assert pauses == [60.0]
    assert len(api.deployed) == 1


def test_command_deploy_tells_the_problem_and_ends():
    commands = RecordedCommands({"deployments.check": failed("python", output="applications.0.argz: unknown key")})
    with pytest.raises(BootFailed, match="argz: unknown key"):
        duty(RecordedApi(), commands).deploy()


def test_stop_ends_the_wait_for_a_config(stored_yaml: list[str]):
    stored_yaml.clear()
    stop = Event()
    stop.set()
    with pytest.raises(StopRequested):
        duty(RecordedApi(), stop=stop).fulfil()
