"""One loader for every model: it asks each layer what it holds and reads no more than that."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from core.errors import CheckpointError
from parallel.checkpoint.reader import Checkpoint
from parallel.formats.choice import Matrix, format_of
from parallel.formats.kinds import QuantFormat, Quantization, stored_format
from parallel.formats.quantise import quantise_fp8
from parallel.formats.quantised import QuantisedMatrix
from parallel.formats.reading import read_codes
from parallel.layers.linear import Linear
from parallel.layers.shard import Shard, ShardedLayer
from parallel.layers.vocab import VocabParallelEmbedding, VocabParallelHead
from parallel.models.decoder import CausalLM
from parallel.ops.choice import OpChoice

logger = logging.getLogger(__name__)

OnProgress = Callable[[int, int, str], None]
"""Gets bytes done, bytes in total (of this rank's weights, as if all were plain), and the file being read."""


class _Piece(NamedTuple):
    """A slice of a checkpoint tensor and the rows of the parameter that it fills."""

    tensor: str
    rows: slice | None
    columns: slice | None
    target: Tensor


def load_weights(
    model: CausalLM, checkpoint: Checkpoint, quantization: Quantization, on_progress: OnProgress
) -> list[str]:
    """Fill every parameter with this rank's slice of the checkpoint; mutates `model`, which then has its fastest form.

    Matrices are kept in the formats that `quantization` asks for. Returns why some are plain where that was not asked
    for. At most one matrix is in memory beside the model. Progress reaches its total. Raises CheckpointError.
    """
    loader = _Loader(model, checkpoint, quantization, on_progress)
    for path, layer in _sharded_layers(model):
        loader.load(path, layer)
    loader.finish()
    logger.info("weights loaded", extra={"weight_bytes": model.weight_bytes, "matmul": model.lm_head.matmul.name})
    return loader.plain_because


def describe_weights(model: CausalLM, tier: str, plain_because: Sequence[str]) -> OpChoice:
    """Return in which forms the matrices are multiplied, and why not in those that were asked for."""
    names = Counter(layer.matmul.name for layer in model.modules() if isinstance(layer, Linear))
    forms = ", ".join(f"{name} ({count} matrices)" for name, count in names.most_common())
    others = f", and {len(plain_because) - 1} more" if len(plain_because) > 1 else ""
    return OpChoice("weights", tier, forms, plain_because[0] + others if plain_because else "")


def _sharded_layers(model: CausalLM) -> Iterator[tuple[str, ShardedLayer]]:
    for path, module in model.named_modules():
        if isinstance(module, ShardedLayer):
            yield path, module
        else:
            assert not list(module.parameters(recurse=False)), f"{path} has parameters but no shards"


class _Loader:
    """Loads layer after layer, and remembers how far it is."""

    def __init__(
        self, model: CausalLM, checkpoint: Checkpoint, quantization: Quantization, on_progress: OnProgress
    ) -> None:
        self.plain_because: list[str] = []
        self._device = model.model.norm.weight.device
        self._tied_head = model.lm_head if model.spec.tie_word_embeddings else None
        self._checkpoint = checkpoint
        self._quantization: Quantization = quantization
        self._on_progress = on_progress
        self._done = 0
        self._total = sum(parameter.nbytes for parameter in model.parameters())

    def load(self, path: str, layer: ShardedLayer) -> None:
        """Fill the layer's vectors, then have it take its matrix."""
        for name, parameter in layer.named_parameters(recurse=False):
            if parameter.dim() == 1:
                self._fill(_pieces(path, name, parameter, layer.shards))
        match layer:
            case VocabParallelEmbedding(weight=nn.Parameter() as parameter):
                weight = self._matrix(path, layer, parameter, is_inner=False)
                if self._tied_head is not None:
                    self._tied_head.pack(weight)
                layer.pack(weight, None if self._tied_head is None else self._tied_head.matmul)
            case Linear(weight=nn.Parameter() as parameter):
                layer.pack(self._matrix(path, layer, parameter, is_inner=not isinstance(layer, VocabParallelHead)))
            case _:
                pass

    def finish(self) -> None:
        """Report the end."""
        assert self._done == self._total, f"{self._done} of {self._total} bytes were loaded"
        self._on_progress(self._done, self._total, "")

    def _matrix(
        self, path: str, layer: ShardedLayer, parameter: nn.Parameter, is_inner: bool
    ) -> Tensor | QuantisedMatrix:
        """Return a weight in the format that it is to be kept in."""
        num_outputs, num_inputs = parameter.shape
        pieces = _pieces(path, "weight", parameter, layer.shards)
        columns = layer.shards[0].columns or range(num_inputs)
        matrix = Matrix(tuple(piece.tensor for piece in pieces), num_outputs, columns, is_inner)
        wanted = format_of(matrix, self._checkpoint.tensors, self._quantization)
        if wanted is QuantFormat.INT8 or wanted is QuantFormat.INT4:
            return QuantisedMatrix.stack([self._codes(piece, wanted) for piece in pieces]).to(self._device)
        weight_OI = torch.empty_like(parameter, device=self._device) if parameter.is_meta else parameter.detach()
        self._fill(_pieces(path, "weight", weight_OI, layer.shards))
        if wanted is QuantFormat.FP8:
            return quantise_fp8(weight_OI)
        self._explain_plain(matrix)
        return weight_OI

    def _explain_plain(self, matrix: Matrix) -> None:
        dtypes = [self._checkpoint.tensors[name].dtype for name in matrix.tensors]
        is_expected = self._quantization in ("none", "fp8") or (
            self._quantization == "auto" and not any(map(stored_format, dtypes))
        )
        if not is_expected:
            self.plain_because.append(
                f"{' + '.join(matrix.tensors)} of types {', '.join(dtypes)}, inputs {matrix.columns.start} to"
                f" {matrix.columns.stop}, has no common format of groups of 32"
            )

    def _codes(self, piece: _Piece, quant_format: QuantFormat) -> QuantisedMatrix:
        self._report(piece)
        matrix = read_codes(self._checkpoint, quant_format, piece.tensor, piece.rows, piece.columns)
        self._take(piece, matrix.shape)
        return matrix

    def _fill(self, pieces: list[_Piece]) -> None:
        for piece in pieces:
            self._report(piece)
            values = self._checkpoint.read(piece.tensor, piece.rows, piece.columns)
            self._take(piece, tuple(values.shape))
            piece.target.copy_(values)

    def _report(self, piece: _Piece) -> None:
        self._on_progress(self._done, self._total, self._checkpoint.tensors[piece.tensor].file.name)

    def _take(self, piece: _Piece, shape: tuple[int, ...]) -> None:
        """Count a piece as read. Raises CheckpointError if it is of another shape than the model's."""
        if shape != piece.target.shape:
            raise CheckpointError(
                f"{self._checkpoint.tensors[piece.tensor].file}: {piece.tensor} gave a slice of shape {shape}; "
                f"the model needs {tuple(piece.target.shape)}"
            )
        self._done += piece.target.nbytes


def _pieces(path: str, name: str, parameter: Tensor, shards: tuple[Shard, ...]) -> list[_Piece]:
    """Return what fills `parameter`, top to bottom."""
    parent = path.rpartition(".")[0]
    pieces: list[_Piece] = []
    first = 0
    for shard in shards:
        source = f"{parent}.{shard.source}" if shard.source else path
        num_rows = parameter.shape[0] if shard.rows is None else len(shard.rows)
        columns = shard.columns if parameter.dim() > 1 else None
        target = parameter[first : first + num_rows]
        pieces.append(_Piece(f"{source}.{name}", _as_slice(shard.rows), _as_slice(columns), target))
        first += num_rows
    return pieces


def _as_slice(part: range | None) -> slice | None:
    return None if part is None else slice(part.start, part.stop)
