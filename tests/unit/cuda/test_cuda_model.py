"""A whole tiny model on the CUDA tier says what it says on tier 0, step by step."""

import pytest
import torch
from torch import Tensor

from parallel.attention.base import AttentionBatch, StepContext
from parallel.cuda.batch import CudaBatch
from parallel.cuda.ops import CudaOps
from parallel.groups.solo import SoloGroup
from parallel.kv_cache import KVCache
from parallel.layers.shard import Storage
from parallel.models.decoder import CausalLM
from parallel.models.registry import build_model
from parallel.ops.base import Ops
from parallel.ops.torch_ops import TorchOps
from parallel.sharding import ShardPlan
from tests.support.kernel_device import DEVICE
from tests.support.tiny_specs import a_spec

BLOCK_SIZE = 8
TABLE = torch.tensor([[3, 1, 0], [2, 5, 6]])
PROMPTS = [list(range(5, 14)), [9]]
NEXT = [[11, 12], [13, 14]]


class Runner:
    """Two rows of one model: a prompt of nine tokens and one of a single token, then decoding."""

    def __init__(self, ops: Ops, kv_dtype: torch.dtype, **spec_changes):
        spec = a_spec(num_layers=1, **spec_changes)
        shard = ShardPlan.of(spec, 1).ranks[0]
        self.model: CausalLM = build_model(spec, shard, SoloGroup(), Storage(torch.float32, DEVICE, ops))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        layout = ops.kv_layout(BLOCK_SIZE, spec.num_kv_heads, spec.head_dim, kv_dtype)
        self.kv = KVCache(spec.num_layers, 8, layout, DEVICE)

    @torch.inference_mode()
    def logits(self, token_ids: list[int], positions: list[int], batch: AttentionBatch) -> Tensor:
        tokens_T, positions_T = (torch.tensor(values, device=DEVICE) for values in (token_ids, positions))
        return self.model.logits(self.model(tokens_T, positions_T, StepContext(batch, self.kv.layers)))

    def prefill(self) -> Tensor:
        positions = [*range(9), 0]
        rows = [0] * 9 + [1]
        slots = [
            int(TABLE[row, at // BLOCK_SIZE]) * BLOCK_SIZE + at % BLOCK_SIZE
            for row, at in zip(rows, positions, strict=True)
        ]
        batch = AttentionBatch((9, 1), (9, 1), torch.tensor(slots, device=DEVICE), TABLE.to(DEVICE))
        return self.logits([*PROMPTS[0], *PROMPTS[1]], positions, batch)

    def decode(self, step: int) -> Tensor:
        positions = [9 + step, 1 + step]
        batch = AttentionBatch((1, 1), (10 + step, 2 + step), slots_of(positions), TABLE.to(DEVICE))
        return self.logits(NEXT[step], positions, batch)


def slots_of(positions: list[int]) -> Tensor:
    slots = [int(TABLE[row, at // BLOCK_SIZE]) * BLOCK_SIZE + at % BLOCK_SIZE for row, at in enumerate(positions)]
    return torch.tensor(slots, device=DEVICE)


QWEN3 = {"architecture": "Qwen3ForCausalLM", "qk_norm": True, "tie_word_embeddings": True}


@pytest.mark.parametrize(
    ("spec_changes", "kv_dtype"), [({}, torch.float32), (QWEN3, torch.int8)], ids=["llama", "qwen3, int8 cache"]
)
def test_prompts_and_decode_steps_give_the_logits_of_tier_0(spec_changes, kv_dtype):
    expected = Runner(TorchOps(torch.float32), kv_dtype, **spec_changes)
    actual = Runner(CudaOps(torch.float32, num_multiprocessors=2), kv_dtype, **spec_changes)
    # A rounding of queries may turn a code of the cache by one.
    tolerance = 1e-4 if kv_dtype == torch.float32 else 2e-2
    torch.testing.assert_close(actual.prefill(), expected.prefill(), rtol=tolerance, atol=tolerance)
    for step in range(len(NEXT)):
        torch.testing.assert_close(actual.decode(step), expected.decode(step), rtol=tolerance, atol=tolerance)


def test_a_step_over_kept_tensors_with_padding_rows_gives_the_same_logits():
    expected = Runner(TorchOps(torch.float32), torch.float32)
    actual = Runner(CudaOps(torch.float32, num_multiprocessors=2), torch.float32)
    expected.prefill(), actual.prefill()
    # As a CUDA graph of four rows has them: two of the rows are padding.
    slots_B = torch.full((4,), -1, device=DEVICE)
    table_BM = torch.zeros(4, 3, dtype=torch.int64, device=DEVICE)
    context_lens_B = torch.zeros(4, dtype=torch.int32, device=DEVICE)
    batch = CudaBatch.decoding(slots_B, table_BM, context_lens_B)
    table_BM[:2] = TABLE
    for step in range(len(NEXT)):
        positions = [9 + step, 1 + step]
        slots_B[:2] = slots_of(positions)
        context_lens_B[:2] = torch.tensor(positions) + 1
        logits_BV = actual.logits([*NEXT[step], 0, 0], [*positions, 0, 0], batch)
        torch.testing.assert_close(logits_BV[:2], expected.decode(step), rtol=1e-4, atol=1e-4)
        assert logits_BV.isfinite().all()
