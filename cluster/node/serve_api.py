"""What Ray Serve has deployed, and deploying, through Ray's dashboard."""

import json
import logging

import msgspec
from pydantic import ValidationError

from cluster.node.dashboard import Dashboard
from cluster.node.errors import BootFailed, NotYet
from cluster.node.serve_config import ServeConfig

logger = logging.getLogger(__name__)

_PATH = "/api/serve/applications/"


class Application(msgspec.Struct, frozen=True):
    """An application of a cluster as Serve reports it."""

    status: str
    message: str = ""
    deployed_app_config: ServeConfig | None = None
    """Its part of the Serve config, as it was deployed."""

    @property
    def has_failed(self) -> bool:
        """Whether Serve has given it up; only another deployment begins it again."""
        return self.status == "DEPLOY_FAILED"

    @property
    def is_running(self) -> bool:
        """Whether all of its replicas are up."""
        return self.status == "RUNNING"


class _Details(msgspec.Struct):
    applications: dict[str, Application] = {}


class ServeApi:
    """What is deployed in one cluster, and deploying."""

    def __init__(self, dashboard: Dashboard) -> None:
        self._dashboard = dashboard

    def applications(self) -> dict[str, Application]:
        """Return what is deployed, by name. Raises NotYet, BootFailed."""
        return msgspec.json.decode(self._dashboard.ask(_PATH), type=_Details).applications

    def deploy(self, config: ServeConfig) -> None:
        """Make `config` what is served; applications it does not name end. Raises NotYet, BootFailed."""
        self._dashboard.ask(_PATH, "PUT", json.dumps(config).encode())


def deploy_if_changed(api: ServeApi, config: ServeConfig) -> bool:
    """Have `config` served; return whether anything had to change. Raises NotYet, BootFailed.

    A head that replaces another finds the applications running, and leaves them alone.
    """
    if are_same(api.applications(), config):
        logger.info("what runs is what the config says")
        return False
    api.deploy(config)
    logger.info("Serve config deployed", extra={"applications": [a["name"] for a in config["applications"]]})
    return True


def check_running(api: ServeApi) -> None:
    """Return if every application runs. Raises NotYet while one is started, BootFailed if one cannot be."""
    applications = api.applications()
    for name, application in applications.items():
        if application.has_failed:
            raise BootFailed(f"application {name} cannot be started: {' '.join(application.message.split())[-800:]}")
    waiting = [f"{name} is {state.status}" for name, state in applications.items() if not state.is_running]
    if waiting:
        raise NotYet(", ".join(waiting))


def are_same(deployed: dict[str, Application], config: ServeConfig) -> bool:
    """Return whether the applications of `config`, and no others, are deployed as it says, and none was given up."""
    if any(application.has_failed for application in deployed.values()):
        return False
    wanted = {application["name"]: _normal(application) for application in config["applications"]}
    return wanted == {name: _normal(found.deployed_app_config or {}) for name, found in deployed.items()}


def _normal(application: ServeConfig) -> ServeConfig:
    """Return the form in which two ways to write the same application are equal."""
    # Imported late: it takes a second, and most of what a node does needs none of Serve.
    from ray.serve.schema import ServeApplicationSchema

    try:
        return ServeApplicationSchema.model_validate(application).model_dump(mode="json", exclude_unset=True)
    except ValidationError:
        return application  # another version of Ray deployed it
