"""The two ends of a model, split by vocabulary rows.

T tokens in step, S sampled positions, D model dim, V vocabulary rows on this rank.
"""

from torch import Tensor, nn

from parallel.formats.quantised import QuantisedMatrix
from parallel.groups.base import TPGroup
from parallel.layers.linear import Linear
from parallel.layers.shard import Shard, ShardedLayer, Storage
from parallel.ops.base import EmbeddingTable, Matmul


class VocabParallelEmbedding(ShardedLayer):
    """x_TD = sum over ranks of the embeddings each rank holds; the others contribute zeros. One all-reduce."""

    def __init__(self, vocab: range, hidden_size: int, group: TPGroup, storage: Storage) -> None:
        super().__init__()
        self.vocab = vocab
        self.group = group
        self.weight: nn.Parameter | None = storage.matrix(len(vocab), hidden_size)
        self.shards = (Shard(rows=vocab),)
        self._ops = storage.ops
        self._table: EmbeddingTable | None = None

    @property
    def table(self) -> EmbeddingTable:
        """The lookup; made of `weight` if it was not packed before."""
        if self._table is None:
            assert self.weight is not None
            self.pack(self.weight.detach(), None)
        assert self._table is not None
        return self._table

    def pack(self, weight_VD: Tensor | QuantisedMatrix, head: Matmul | None) -> None:
        """Look rows up in `weight_VD` from now on, or in a tied head's own copy of it; let go of `weight`."""
        self._table = self._ops.embedding(weight_VD, head)
        self.weight = None

    def forward(self, token_ids_T: Tensor) -> Tensor:
        """Return x_TD in memory of its own, the same on every rank."""
        x_TD = self.table(token_ids_T - self.vocab.start)
        return x_TD if self.group.world_size == 1 else self.group.all_reduce(x_TD)


class VocabParallelHead(Linear):
    """logits_SV of this rank's vocabulary rows. No collective: samplers gather candidates, not logits.

    A tied head is given the embedding's own parameter.
    """

    def __init__(self, weight_VD: nn.Parameter, vocab: range, storage: Storage) -> None:
        super().__init__(weight_VD, None, storage)
        self.shards = (Shard(rows=vocab),)

    def forward(self, hidden_SD: Tensor) -> Tensor:
        """Return float32 logits_SV."""
        return self.matmul(hidden_SD).float()
