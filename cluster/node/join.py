"""Starting Ray until the cluster counts this machine as alive."""

import secrets
import socket
from collections.abc import Callable
from typing import NamedTuple

from cluster.node.errors import BootFailed, NotYet
from cluster.node.patience import Patience
from cluster.node.ray_process import RayProcess

_POLL_S = 2.0
_STOP_LIMIT_S = 30.0


class JoinLimits(NamedTuple):
    """How long a machine tries."""

    join_s: float = 900.0
    """To become a node; a worker may be there long before the head."""
    register_s: float = 180.0
    """To be counted as alive once `ray start` runs; then it is started again."""


class _RayEnded(Exception):
    """`ray start` ended before the node was counted as alive."""


def join_cluster(
    start: Callable[[str], RayProcess],
    check_member: Callable[[str], None],
    patience: Patience,
    limits: JoinLimits = JoinLimits(),  # noqa: B008 - an immutable value
) -> RayProcess:
    """Return this machine's Ray once the cluster counts it as alive; a start that fails is made again.

    `start` and `check_member` are given the id of the start and raise NotYet. Raises BootFailed, StopRequested; then no
    Ray is left.
    """

    def attempt() -> RayProcess:
        start_id = secrets.token_hex(8)
        ray = start(start_id)
        try:
            patience.until(
                lambda: _check_running(ray, lambda: check_member(start_id)), limits.register_s, longest_pause_s=_POLL_S
            )
        except BaseException as error:
            ray.stop(_STOP_LIMIT_S)
            if isinstance(error, _RayEnded | BootFailed):
                raise NotYet(str(error)) from None
            raise
        return ray

    return patience.until(attempt, limits.join_s)


def _check_running(ray: RayProcess, check_member: Callable[[], None]) -> None:
    exit_code = ray.exit_code()
    if exit_code is not None:
        raise _RayEnded(f"`ray start` ended with {exit_code}; its last words: {ray.last_words()}")
    check_member()


def check_reachable(host: str, port: int, timeout_s: float = 3.0) -> None:
    """Return if something accepts connections there. Raises NotYet."""
    try:
        socket.create_connection((host, port), timeout_s).close()
    except OSError as error:
        raise NotYet(
            f"the head does not answer at {host}:{port} ({error}); if it is not booting just now, see its log and the "
            "security group, which must admit the cluster's machines to each other"
        ) from None
