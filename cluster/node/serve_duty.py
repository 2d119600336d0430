"""The head's duty to have served what its Serve config says."""

import logging

from cluster.node.commands import Commands
from cluster.node.config import NodeConfig
from cluster.node.errors import BootFailed, NotYet
from cluster.node.members import ask_members
from cluster.node.patience import Patience
from cluster.node.ray_start import gcs_address
from cluster.node.serve_api import ServeApi, check_running, deploy_if_changed
from cluster.node.serve_config import check_serve_config, fetch_serve_config, for_cluster

logger = logging.getLogger(__name__)

_WORKERS_LIMIT_S = 900.0
_DEPLOY_LIMIT_S = 300.0
_START_LIMIT_S = 7200.0
"""For all replicas to be up: the largest models load for half an hour, and machines for them come before."""
_RETRY_S = 60.0


class ServeDuty:
    """Deploys once the cluster is up; a config that cannot be deployed is read again until it can."""

    def __init__(
        self, config: NodeConfig, location: str, api: ServeApi, commands: Commands, patience: Patience
    ) -> None:
        self._config = config
        self._location = location
        self._api = api
        self._commands = commands
        self._patience = patience

    def fulfil(self) -> None:
        """Return once every application runs; blocks, for as long as models load. Raises StopRequested.

        Nothing that fails here ends the head: what a former head deployed goes on being served.
        """
        self._wait_for_workers()
        while True:
            try:
                self.deploy()
                self._patience.until(lambda: check_running(self._api), _START_LIMIT_S)
            except BootFailed as error:
                logger.error(
                    "what the Serve config says does not run, deployed again",
                    extra={"error": str(error), "pause_s": _RETRY_S},
                )
            else:
                return
            self._patience.pause(_RETRY_S)

    def deploy(self) -> None:
        """Have the config served as it is now at its location. Raises BootFailed, StopRequested."""
        text = self._patience.until(
            lambda: fetch_serve_config(self._location, self._config.region), limit_s=_DEPLOY_LIMIT_S
        )
        config = for_cluster(text)
        check_serve_config(self._commands, config)
        self._patience.until(lambda: deploy_if_changed(self._api, config), _DEPLOY_LIMIT_S)

    def _wait_for_workers(self) -> None:
        """Wait for the fewest machines of every group: models that find no room give up sooner than machines come."""
        num_wanted = sum(group.min_size for group in self._config.worker_groups) + 1
        try:
            self._patience.until(lambda: self._count(num_wanted), _WORKERS_LIMIT_S, longest_pause_s=15.0)
        except BootFailed as error:
            logger.warning("deploying without all workers", extra={"error": str(error)})

    def _count(self, num_wanted: int) -> None:
        if num_wanted == 1:
            return
        num_alive = sum(member.is_alive for member in ask_members(self._commands, gcs_address(self._config)))
        if num_alive < num_wanted:
            raise NotYet(f"{num_alive} of {num_wanted} nodes are in the cluster")
