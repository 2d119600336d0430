"""What can be known to be wrong before a single rank starts."""

import logging

from cluster.config import ReplicaGroupConfig
from core.errors import InvalidConfig
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
    wanted = config.model.max_model_len
    if wanted is not None and wanted > spec.max_context:
        raise InvalidConfig(
            f"model.max_model_len={wanted} is over the checkpoint's limit of {spec.max_context} tokens; "
            "lower it or leave it out"
        )
    logger.info("checkpoint and shard plan are sound", extra={"path": str(path)})
    return wanted or spec.max_context
