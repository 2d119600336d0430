"""Ray's REST API for Serve: what is deployed, and deploying. It answers on the head's loopback address."""

import json
import logging
import urllib.error
import urllib.request
from pathlib import Path

import msgspec
from pydantic import ValidationError

from cluster.node.errors import BootFailed, NotYet
from cluster.node.ray_start import DASHBOARD_PORT
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
    """Client of one cluster's Serve; sends the cluster's token."""

    def __init__(
        self, token_path: Path, url: str = f"http://127.0.0.1:{DASHBOARD_PORT}", timeout_s: float = 60.0
    ) -> None:
        self._token_path = token_path
        self._url = url + _PATH
        self._timeout_s = timeout_s

    def applications(self) -> dict[str, Application]:
        """Return what is deployed, by name. Raises NotYet, BootFailed."""
        return msgspec.json.decode(self._ask("GET"), type=_Details).applications

    def deploy(self, config: ServeConfig) -> None:
        """Make `config` what is served; applications it does not name end. Raises NotYet, BootFailed."""
        self._ask("PUT", json.dumps(config).encode())

    def _ask(self, method: str, body: bytes | None = None) -> bytes:
        headers = {"Authorization": f"Bearer {self._token_path.read_text(encoding='ascii')}"}
        request = urllib.request.Request(
            self._url, method=method, data=body, headers=headers | {"Content-Type": "application/json"}
        )
        try:
            # No proxy: it is this machine.
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(request, timeout=self._timeout_s) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            said = " ".join(error.read().decode(errors="replace").split())[-600:]
            if error.code == 400:
                raise BootFailed(f"Serve refuses the config: {said}") from None
            if error.code in (401, 403):
                raise BootFailed(f"Ray refuses the token in {self._token_path}: {said}; restart the node") from None
            raise NotYet(f"Ray's dashboard answers {error.code}: {said}") from None
        except OSError as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise NotYet(f"Ray's dashboard at {self._url} does not answer ({reason})") from None


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
