"""Ray's REST API for Serve: what is deployed, and deploying. It answers on the head's loopback address."""

import json
import logging
import urllib.error
import urllib.request
from pathlib import Path

from cluster.node.errors import BootFailed, NotYet
from cluster.node.ray_start import DASHBOARD_PORT
from cluster.node.serve_config import ServeConfig

logger = logging.getLogger(__name__)

_PATH = "/api/serve/applications/"


class ServeApi:
    """Client of one cluster's Serve; sends the cluster's token."""

    def __init__(
        self, token_path: Path, url: str = f"http://127.0.0.1:{DASHBOARD_PORT}", timeout_s: float = 60.0
    ) -> None:
        self._token_path = token_path
        self._url = url + _PATH
        self._timeout_s = timeout_s

    def deployed(self) -> dict[str, ServeConfig]:
        """Return the config of each application by name, as it was deployed. Raises NotYet, BootFailed."""
        applications = json.loads(self._ask("GET")).get("applications", {})
        return {name: state.get("deployed_app_config") or {} for name, state in applications.items()}

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
    if same_applications(api.deployed(), config):
        logger.info("what runs is what the config says")
        return False
    api.deploy(config)
    logger.info("Serve config deployed", extra={"applications": [a["name"] for a in config["applications"]]})
    return True


def same_applications(deployed: dict[str, ServeConfig], config: ServeConfig) -> bool:
    """Return whether the applications of `config`, and no others, are deployed as it says."""
    from ray.serve.schema import ServeApplicationSchema

    def normal(application: ServeConfig) -> ServeConfig:
        return ServeApplicationSchema.model_validate(application).model_dump(mode="json", exclude_unset=True)

    wanted = {application["name"]: normal(application) for application in config["applications"]}
    return wanted == {name: normal(application) for name, application in deployed.items()}
