"""What this machine is meant to be, where a cluster's boot wrote it down."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.node.config import DEFAULT_PATH, NodeConfig
from core.errors import InvalidConfig
from deployments.doctor.finding import Finding, ok, problem


@dataclass(frozen=True)
class Role:
    """What is written in node.json."""

    config: NodeConfig | None
    """None: there is no such file, or it cannot be read."""
    error: str
    """Why not; empty if it can, or is not there."""


def gather(path: Path = DEFAULT_PATH) -> Role:
    """Return this machine's role."""
    if not path.exists():
        return Role(None, "")
    try:
        return Role(NodeConfig.load(path), "")
    except InvalidConfig as error:
        return Role(None, error.message)


def check(role: Role) -> Iterator[Finding]:
    """Yield what the machine is meant to be; nothing where nobody said."""
    if role.error:
        yield problem(
            "node.role", role.error, "user data writes this file: correct the template, and boot a new machine"
        )
    elif role.config is not None:
        config = role.config
        group = f", group {config.group}" if config.group else ""
        yield ok("node.role", f"{config.role} of cluster {config.cluster}{group}, {config.num_gpus} GPUs")
