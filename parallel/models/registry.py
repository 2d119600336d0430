"""From a spec to a model that is ready to be loaded."""

import torch

from parallel.groups.base import TPGroup
from parallel.models.decoder import CausalLM
from parallel.models.spec import ModelSpec
from parallel.sharding import RankShard


def build_model(
    spec: ModelSpec, shard: RankShard, group: TPGroup, dtype: torch.dtype, device: torch.device
) -> CausalLM:
    """Return this rank's part of the model, its weights allocated on `device` but not yet written.

    Raises UnsupportedModel if the architecture is not implemented.
    """
    raise NotImplementedError
