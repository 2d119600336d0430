"""Runs a model over a paged cache step by step, as a rank does, but without plans, sampler or scheduler."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from parallel.attention.base import AttentionBatch, StepContext
from parallel.checkpoint.reader import Checkpoint, open_checkpoint
from parallel.groups.base import TPGroup
from parallel.kv_cache import KVCache
from parallel.models.decoder import CausalLM
from parallel.models.loader import load_weights
from parallel.models.registry import build_model
from parallel.ops.torch_ops import TorchOps
from parallel.sharding import ShardPlan
from tests.support.storages import torch_storage

CPU = torch.device("cpu")


class ModelRunner:
    """Rows keep their length and block table between steps; blocks are handed out in random order."""

    def __init__(
        self, model: CausalLM, num_kv_heads: int, dtype: torch.dtype, num_blocks: int = 64, block_size: int = 8
    ):
        self.model = model
        self._block_size = block_size
        self._lengths: dict[int, int] = {}
        self._blocks: dict[int, list[int]] = {}
        self._free = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(0)).tolist()
        spec = model.spec
        layout = TorchOps(dtype).kv_layout(block_size, num_kv_heads, spec.head_dim, dtype)
        self._kv = KVCache(spec.num_layers, num_blocks, layout, CPU)

    @classmethod
    def load(cls, path: Path, group: TPGroup, dtype: torch.dtype = torch.float32) -> "ModelRunner":
        """Return this rank's part of the checkpoint at `path`, ready to run."""
        return cls.of(open_checkpoint(path), group, dtype)

    @classmethod
    def of(cls, checkpoint: Checkpoint, group: TPGroup, dtype: torch.dtype = torch.float32) -> "ModelRunner":
        """Return this rank's part of `checkpoint`, ready to run."""
        shard = ShardPlan.of(checkpoint.spec, group.world_size).ranks[group.rank]
        model = build_model(checkpoint.spec, shard, group, torch_storage(dtype))
        load_weights(model, checkpoint, "auto", lambda done, total, detail: None)
        return cls(model, len(shard.kv_heads), dtype)

    @torch.inference_mode()
    def step(self, chunks: Mapping[int, Sequence[int]]) -> dict[int, Tensor]:
        """Compute the next tokens of some rows; return each row's logits_TV on this rank's vocabulary."""
        positions = [self._advance(row, len(tokens)) for row, tokens in chunks.items()]
        table_BM = pad_sequence([torch.tensor(self._blocks[row]) for row in chunks], batch_first=True)
        slots = [
            self._blocks[row][position // self._block_size] * self._block_size + position % self._block_size
            for row, span in zip(chunks, positions, strict=True)
            for position in span
        ]
        batch = AttentionBatch(
            query_lens=tuple(len(tokens) for tokens in chunks.values()),
            context_lens=tuple(self._lengths[row] for row in chunks),
            slots_T=torch.tensor(slots),
            block_table_BM=table_BM,
        )
        token_ids_T = torch.tensor([token for tokens in chunks.values() for token in tokens])
        positions_T = torch.tensor([position for span in positions for position in span])
        hidden_TD = self.model(token_ids_T, positions_T, StepContext(batch, self._kv.layers))
        logits_TV = self.model.logits(hidden_TD)
        return dict(zip(chunks, logits_TV.split(batch.query_lens), strict=True))

    def _advance(self, row: int, num_tokens: int) -> range:
        """Give the row its blocks; return the positions of its new tokens."""
        start = self._lengths.get(row, 0)
        blocks = self._blocks.setdefault(row, [])
        while len(blocks) * self._block_size < start + num_tokens:
            blocks.append(self._free.pop())
        self._lengths[row] = start + num_tokens
        return range(start, start + num_tokens)


def greedy(runner: ModelRunner, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """Return the most likely continuation on one rank; row 0 must be unused."""
    tokens: list[int] = []
    chunk = list(prompt)
    for _ in range(num_tokens):
        chunk = [int(runner.step({0: chunk})[0][-1].argmax())]
        tokens += chunk
    return tokens


PROMPTS = {
    0: [(7 * i + 3) % 320 for i in range(40)],
    1: [(11 * i) % 320 for i in range(22)],
    2: [5, 300, 17, 256, 9, 1],
}
"""Token ids of three rows, for models with a vocabulary of 320."""


def all_logits(step: Callable[[Mapping[int, Sequence[int]]], dict[int, Tensor]]) -> dict[int, Tensor]:
    """Compute PROMPTS in every kind of step (whole and chunked prefill, decode, mixtures); return logits per row."""
    schedule = [{0: 16, 1: 20}, {0: 21, 2: 4}, {2: 1, 0: 1, 1: 1}, {0: 2, 1: 1, 2: 1}]
    done = dict.fromkeys(PROMPTS, 0)
    parts: dict[int, list[Tensor]] = {row: [] for row in PROMPTS}
    for lengths in schedule:
        chunks = {row: PROMPTS[row][done[row] : done[row] + length] for row, length in lengths.items()}
        for row, logits_TV in step(chunks).items():
            parts[row].append(logits_TV)
            done[row] += len(logits_TV)
    assert all(done[row] == len(PROMPTS[row]) for row in PROMPTS)
    return {row: torch.cat(logits) for row, logits in parts.items()}
