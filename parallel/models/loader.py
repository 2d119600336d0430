"""One loader for every model: it asks each layer what it holds and reads no more than that."""

import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor

from core.errors import CheckpointError
from parallel.checkpoint.reader import Checkpoint
from parallel.layers.linear import Linear
from parallel.layers.shard import Shard, ShardedLayer
from parallel.models.decoder import CausalLM

logger = logging.getLogger(__name__)


class _Piece(NamedTuple):
    """A slice of a checkpoint tensor and the rows of the parameter that it fills."""

    tensor: str
    rows: slice | None
    columns: slice | None
    target: Tensor


def load_weights(model: CausalLM, checkpoint: Checkpoint, on_progress: Callable[[int, int, str], None]) -> None:
    """Fill every parameter with this rank's slice of the checkpoint; mutates `model`, which then has its fastest form.

    At most one slice is in memory beside the model. `on_progress(done, total, detail)` gets bytes of this rank's
    weights and the file being read; done reaches total. Raises CheckpointError.
    """
    total = sum(parameter.nbytes for parameter in model.parameters())
    done = 0
    loaded: set[Tensor] = set()
    for path, layer in _sharded_layers(model):
        for name, parameter in layer.named_parameters(recurse=False):
            if parameter in loaded:  # the head of a tied embedding
                continue
            loaded.add(parameter)
            for piece in _pieces(path, name, parameter, layer.shards):
                on_progress(done, total, checkpoint.tensors[piece.tensor].file.name)
                _fill(piece, checkpoint)
                done += piece.target.nbytes
        if isinstance(layer, Linear) and layer.weight is not None:
            layer.pack(layer.weight.detach())
    _pack_embedding(model)
    on_progress(done, total, "")
    logger.info("weights loaded", extra={"weight_bytes": model.weight_bytes, "matmul": model.lm_head.matmul.name})


def _pack_embedding(model: CausalLM) -> None:
    """Let rows be looked up, in a tied head's copy where the tier can."""
    embedding = model.model.embed_tokens
    assert embedding.weight is not None
    embedding.pack(embedding.weight.detach(), model.lm_head.matmul if model.spec.tie_word_embeddings else None)


def _sharded_layers(model: CausalLM) -> Iterator[tuple[str, ShardedLayer]]:
    for path, module in model.named_modules():
        if isinstance(module, ShardedLayer):
            yield path, module
        else:
            assert not list(module.parameters(recurse=False)), f"{path} has parameters but no shards"


def _pieces(path: str, name: str, parameter: Tensor, shards: tuple[Shard, ...]) -> Iterator[_Piece]:
    """Yield what fills `parameter`, top to bottom."""
    parent = path.rpartition(".")[0]
    first = 0
    for shard in shards:
        source = f"{parent}.{shard.source}" if shard.source else path
        num_rows = parameter.shape[0] if shard.rows is None else len(shard.rows)
        columns = shard.columns if parameter.dim() > 1 else None
        target = parameter[first : first + num_rows]
        yield _Piece(f"{source}.{name}", _as_slice(shard.rows), _as_slice(columns), target)
        first += num_rows


def _as_slice(part: range | None) -> slice | None:
    return None if part is None else slice(part.start, part.stop)


def _fill(piece: _Piece, checkpoint: Checkpoint) -> None:
    values = checkpoint.read(piece.tensor, piece.rows, piece.columns)
    if values.shape != piece.target.shape:
        raise CheckpointError(
            f"{checkpoint.tensors[piece.tensor].file}: {piece.tensor} gave a slice of shape {tuple(values.shape)}; "
            f"the model needs {tuple(piece.target.shape)}"
        )
    piece.target.copy_(values)
