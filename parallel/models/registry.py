"""From a spec to a model that is ready to be loaded."""

from core.errors import UnsupportedModel
from parallel.groups.base import TPGroup
from parallel.layers.shard import Storage
from parallel.models.decoder import CausalLM
from parallel.models.spec import ModelSpec
from parallel.sharding import RankShard

MODELS = {
    "LlamaForCausalLM": CausalLM,
    "MistralForCausalLM": CausalLM,
    "Qwen2ForCausalLM": CausalLM,
    "Qwen3ForCausalLM": CausalLM,
}
"""The class that implements each architecture."""


def build_model(spec: ModelSpec, shard: RankShard, group: TPGroup, storage: Storage) -> CausalLM:
    """Return this rank's part of the model, its weights allocated but not yet written.

    Raises UnsupportedModel if the architecture is not implemented.
    """
    if spec.architecture not in MODELS:
        raise UnsupportedModel(f"architecture {spec.architecture!r} is not implemented; use one of {', '.join(MODELS)}")
    return MODELS[spec.architecture](spec, shard, group, storage).eval()
