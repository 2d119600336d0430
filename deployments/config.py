"""What `args` and `user_config` of a model application may say, and what Serve is told by default."""

from typing import Any

from pydantic import Field

from cluster.config import ReplicaGroupConfig

GATEWAY_DEPLOYMENT = "Gateway"
MODEL_DEPLOYMENT = "ReplicaGroup"
"""Names of the deployments, as `deployments:` in a Serve config refers to them."""


class ModelArgs(ReplicaGroupConfig):
    """`args` of `deployments.app:model`: one version of one model. A change replaces every replica group of it."""

    gateway: str = Field(default="gateway", min_length=1)
    """Name of the gateway application that routes to this model."""
    channel_host: str | None = None
    """Address the token channel listens on. Default: loopback while the cluster is one node, then the node's own."""
    drain_timeout_s: float = Field(default=60.0, ge=0)
    """How long open streams may go on when a replica is stopped; keep it under `graceful_shutdown_timeout_s`."""


GATEWAY_OPTIONS: dict[str, Any] = {
    "name": GATEWAY_DEPLOYMENT,
    "ray_actor_options": {"num_cpus": 0.1},
    # Serve's default of 5 would throttle a gateway to five open streams.
    "max_ongoing_requests": 2000,
    "max_queued_requests": 2000,
    "health_check_period_s": 2.0,
    "health_check_timeout_s": 10.0,
    "graceful_shutdown_timeout_s": 90.0,
    "max_constructor_retry_count": 3,
}

MODEL_OPTIONS: dict[str, Any] = {
    "name": MODEL_DEPLOYMENT,
    "ray_actor_options": {"num_cpus": 0.1},
    # Requests come by the token channel, where the scheduler bounds them; Serve itself calls a group only to check it.
    "max_ongoing_requests": 100,
    "max_queued_requests": 100,
    # The controller's poll is what replaces a group that cannot restart in place.
    "health_check_period_s": 2.0,
    "health_check_timeout_s": 10.0,
    "graceful_shutdown_timeout_s": 90.0,
    # A StartupError stays one however often it is tried.
    "max_constructor_retry_count": 1,
}
