"""What can be known to be wrong before a single rank starts."""

import logging

from cluster.config import ReplicaGroupConfig
from engine.memory import longest_context
from parallel.checkpoint.reader import check_tensors, open_checkpoint
from parallel.checkpoint.source import resolve_checkpoint
from parallel.sharding import ShardPlan

logger = logging.getLogger(__name__)


def check_model(config: ReplicaGroupConfig) -> int:
    """Return the longest context if the checkpoint is whole, known, and can be split as asked; reads headers only.

    Blocks, for minutes if the checkpoint is still on the hub. Raises StartupError.
    """
    path = resolve_checkpoint(config.model.source, config.model.revision)
    checkpoint = open_checkpoint(path)
    spec = checkpoint.spec
    check_tensors(spec, checkpoint.tensors, path)
    ShardPlan.of(spec, config.parallel.tensor_parallel_size)
    max_context = longest_context(config.engine, spec)
    logger.info("checkpoint and shard plan are sound", extra={"path": str(path)})
    return max_context
