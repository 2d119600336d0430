"""What is deployed already is left alone, and what cannot be is told in Serve's words."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.serve.schema import ServeDeploySchema

from cluster.node.dashboard import Dashboard
from cluster.node.errors import BootFailed, NotYet
from cluster.node.serve_api import Application, ServeApi, are_same, check_running, deploy_if_changed
from cluster.node.serve_config import for_cluster
from tests.support.loopback_server import LoopbackServer, QuietHandler

CONFIG = {
    "http_options": {"port": 8000},
    "applications": [
        {"name": "gateway", "route_prefix": "/", "import_path": "deployments.app:gateway", "args": {"a": 1}}
    ],
}


class FakeDashboard:
    """Ray's REST API for Serve on 127.0.0.1: remembers what was put, answers `status` with `text` if that is set."""

    def __init__(self) -> None:
        self.puts: list[dict] = []
        self.tokens: list[str] = []
        self.applications: dict[str, dict] = {}
        self.refusal: tuple[int, str] | None = None
        dashboard = self

        class Handler(QuietHandler):
            def do_GET(self) -> None:
                # More than we read, as the real one answers.
                self._answer(json.dumps({"controller_info": {}, "applications": dashboard.applications}))

            def do_PUT(self) -> None:
                dashboard.puts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self._answer("")

            def _answer(self, text: str) -> None:
                assert self.path == "/api/serve/applications/"
                dashboard.tokens.append(self.headers["Authorization"])
                self.answer(*(dashboard.refusal or (200, text)))

        self._server = LoopbackServer(Handler)
        self.url = self._server.url

    def close(self) -> None:
        self._server.close()


@pytest.fixture
def dashboard() -> Iterator[FakeDashboard]:
    dashboard = FakeDashboard()
    yield dashboard
    dashboard.close()


@pytest.fixture
def api(dashboard: FakeDashboard, tmp_path: Path) -> ServeApi:
    (tmp_path / "token").write_text("3f2a9c5e7b1d4608")
    return ServeApi(Dashboard(tmp_path / "token", dashboard.url))


def running(config: dict | None = None, status: str = "RUNNING", message: str = "") -> dict[str, dict]:
    (application,) = CONFIG["applications"]
    return {"gateway": {"status": status, "message": message, "deployed_app_config": config or application}}


def test_first_head_deploys_with_the_token(dashboard: FakeDashboard, api: ServeApi):
    assert deploy_if_changed(api, CONFIG)
    assert dashboard.puts == [CONFIG]
    assert set(dashboard.tokens) == {"Bearer 3f2a9c5e7b1d4608"}


def test_replacing_head_leaves_what_runs_alone(dashboard: FakeDashboard, api: ServeApi):
    dashboard.applications = running()
    assert not deploy_if_changed(api, CONFIG)
    assert dashboard.puts == []


def test_changed_config_is_deployed(dashboard: FakeDashboard, api: ServeApi):
    dashboard.applications = running(CONFIG["applications"][0] | {"args": {"a": 2}})
    assert deploy_if_changed(api, CONFIG)


def test_application_that_serve_gave_up_is_deployed_again(dashboard: FakeDashboard, api: ServeApi):
    dashboard.applications = running(status="DEPLOY_FAILED")
    assert deploy_if_changed(api, CONFIG)


def test_an_application_more_is_a_difference():
    state = Application(**running()["gateway"])
    assert are_same({"gateway": state}, CONFIG)
    assert not are_same({"gateway": state, "old": state}, CONFIG)
    assert not are_same({}, CONFIG)


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=lambda path: path.name)
def test_config_is_recognised_in_what_serve_makes_of_it(path: Path):
    config = for_cluster(path.read_text())
    told = ServeDeploySchema.model_validate(config).model_dump_json(exclude_unset=True)
    deployed = {a["name"]: Application("RUNNING", "", a) for a in json.loads(told)["applications"]}
    assert are_same(deployed, config)
    config["applications"][0]["args"]["models"] = ["another"]
    assert not are_same(deployed, config)


def test_end_of_a_start_is_waited_for(dashboard: FakeDashboard, api: ServeApi):
    dashboard.applications = running(status="DEPLOYING")
    with pytest.raises(NotYet, match="gateway is DEPLOYING"):
        check_running(api)
    dashboard.applications = running()
    check_running(api)


def test_application_that_cannot_start_is_told_with_the_reason(dashboard: FakeDashboard, api: ServeApi):
    dashboard.applications = running(status="DEPLOY_FAILED", message="ImportError:\n  no module named x")
    with pytest.raises(BootFailed, match="application gateway cannot be started: ImportError: no module named x"):
        check_running(api)


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (400, BootFailed, "Ray refuses PUT /api/serve/applications/: port is no number"),
        (401, BootFailed, "Ray refuses the token"),
        (503, NotYet, "Ray's dashboard answers 503"),
    ],
)
def test_refusals_are_told(dashboard: FakeDashboard, api: ServeApi, status: int, error: type[Exception], message: str):
    dashboard.refusal = (status, "port is no number")
    with pytest.raises(error, match=message):
        api.deploy(CONFIG)


def test_dashboard_that_is_not_up_is_waited_for(dashboard: FakeDashboard, tmp_path: Path):
    (tmp_path / "token").write_text("3f2a9c5e7b1d4608")
    with pytest.raises(NotYet, match="does not answer"):
        ServeApi(Dashboard(tmp_path / "token", "http://127.0.0.1:9")).applications()
