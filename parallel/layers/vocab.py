"""Embedding and LM head, split by vocabulary rows.

T tokens in step, S sampled positions, D model dim, V vocabulary rows on this rank.
"""

from torch import Tensor, nn
from torch.nn.functional import embedding

from parallel.groups.base import TPGroup
from parallel.layers.linear import Linear
from parallel.layers.shard import Shard, ShardedLayer, Storage


class VocabParallelEmbedding(ShardedLayer):
    """x_TD = sum over ranks of the embeddings each rank holds; the others contribute zeros. One all-reduce."""

    def __init__(self, vocab: range, hidden_size: int, group: TPGroup, storage: Storage) -> None:
        super().__init__()
        self.vocab = vocab
        self.group = group
        self.weight = storage.parameter(len(vocab), hidden_size)
        self.shards = (Shard(rows=vocab),)

    def forward(self, token_ids_T: Tensor) -> Tensor:
        """Return x_TD in memory of its own, the same on every rank."""
        if self.group.world_size == 1:
            return embedding(token_ids_T, self.weight)
        rows_T = token_ids_T - self.vocab.start
        is_elsewhere_T = (rows_T < 0) | (rows_T >= len(self.vocab))
        x_TD = embedding(rows_T.masked_fill_(is_elsewhere_T, 0), self.weight)
        return self.group.all_reduce(x_TD.masked_fill_(is_elsewhere_T.unsqueeze(1), 0))


class VocabParallelHead(Linear):
    """logits_SV of this rank's vocabulary rows. No collective: samplers gather candidates, not logits.

    A tied head is given the embedding's own parameter. Where `pack` changes the form, the embedding keeps the plain
    tensor as well, because rows cannot be looked up in a packed one.
    """

    def __init__(self, weight_VD: nn.Parameter, vocab: range) -> None:
        super().__init__(weight_VD)
        self.shards = (Shard(rows=vocab),)

    def forward(self, hidden_SD: Tensor) -> Tensor:
        """Return float32 logits_SV."""
        return self.matmul(hidden_SD, None).float()
