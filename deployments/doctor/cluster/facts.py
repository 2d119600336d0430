"""What a Ray cluster says of itself; crosses from the process that asked Ray as JSON."""

import msgspec


class NodeFacts(msgspec.Struct, frozen=True):
    """One node."""

    address: str
    is_alive: bool
    is_draining: bool
    why_dead: str
    """Empty while it lives."""
    gpus: float
    cpus: float


class PlacementFacts(msgspec.Struct, frozen=True):
    """A placement group that is not placed."""

    group_id: str
    state: str
    bundles: list[dict[str, float]]


class ApplicationFacts(msgspec.Struct, frozen=True):
    """One Serve application."""

    name: str
    status: str
    message: str
    """Of the application and its deployments, one after another."""


class ClusterFacts(msgspec.Struct, frozen=True):
    """Everything at one moment."""

    ray_version: str
    nodes: list[NodeFacts]
    waiting: list[PlacementFacts]
    """Placement groups that wait for room."""
    applications: list[ApplicationFacts]
    proxies: dict[str, str]
    """State of the HTTP proxy by node."""
    free: dict[str, float]
    """Resources nobody has reserved."""
    total: dict[str, float]
    gaps: list[str] = []
    """What could not be asked, and why."""
