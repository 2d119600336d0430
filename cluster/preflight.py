"""What can be known to be wrong before a single rank starts."""

import logging
from collections.abc import Callable

from cluster.config import ReplicaGroupConfig
from cluster.supervisor import CheckedModel
from core.progress import Progress
from engine.memory import longest_context
from parallel.checkpoint.reader import check_tensors, open_checkpoint
from parallel.checkpoint.source import Locate, locate_checkpoint
from parallel.sharding import ShardPlan

logger = logging.getLogger(__name__)

_LEADER = 0
"""What is fetched to the leader's machine counts as rank 0's: there are no ranks yet."""


def check_model(
    config: ReplicaGroupConfig, on_progress: Callable[[Progress], None], locate: Locate = locate_checkpoint
) -> CheckedModel:
    """Return what there is to know if the checkpoint is whole, known, and can be split as asked; reads headers only.

    Blocks, for minutes if the checkpoint is still on the hub or in an object store. Raises StartupError, and
    ReplicaFailed when fetching it broke off.
    """
    located = locate(
        config.model.source,
        config.model.revision,
        lambda done, total, name: on_progress(Progress(_LEADER, "fetch", done, total, name)),
    )
    checkpoint = open_checkpoint(located.path)
    spec = checkpoint.spec
    check_tensors(spec, checkpoint.tensors, located.path)
    ShardPlan.of(spec, config.parallel.tensor_parallel_size)
    max_context = longest_context(config.engine, spec)
    logger.info("checkpoint and shard plan are sound", extra={"path": str(located.path)})
    return CheckedModel(max_context, located.revision)
