"""Paged attention by Triton kernels against tier 0."""

import pytest
import torch

from parallel.cuda.attention_decode import MAX_PARTS, Split, attend_decode_rows, choose_split
from parallel.cuda.attention_extend import attend_longer_rows
from parallel.cuda.attention_varlen import VarlenAttention
from parallel.cuda.batch import CudaBatch
from parallel.cuda.ops import CudaOps
from tests.support.cuda_steps import Step, a_step
from tests.support.kernel_device import DEVICE

UNTOUCHED = 7.0


def decoded(step: Step, num_parts: int, least_part_len: int = 1) -> torch.Tensor:
    out_THE = torch.full_like(step.q_THE, UNTOUCHED)
    attend_decode_rows(step.q_THE, step.kv, step.cuda_batch, step.scale, Split(num_parts, least_part_len), out_THE)
    return out_THE


def extended(step: Step) -> torch.Tensor:
    out_THE = torch.full_like(step.q_THE, UNTOUCHED)
    attend_longer_rows(step.q_THE, step.kv, step.cuda_batch, step.scale, out_THE)
    return out_THE


@pytest.mark.parametrize("num_parts", [1, 2, 5])
def test_decode_gives_the_same_in_any_number_of_parts(num_parts):
    step = a_step([(1, 1), (1, 130), (1, 300)])
    step.assert_equals_tier_0(decoded(step, num_parts))
    step.assert_equals_tier_0(decoded(step, num_parts, least_part_len=200))


@pytest.mark.parametrize(("group_size", "head_dim"), [(1, 64), (3, 96), (4, 256), (17, 64)])
def test_decode_serves_any_group_size_and_head_dim(group_size, head_dim):
    step = a_step([(1, 17), (1, 66)], num_kv_heads=2, group_size=group_size, head_dim=head_dim)
    step.assert_equals_tier_0(decoded(step, 2))


@pytest.mark.parametrize(("block_size", "dtype"), [(1, torch.float16), (48, torch.float16), (16, torch.bfloat16)])
def test_decode_serves_any_block_size_and_precision(block_size, dtype):
    step = a_step([(1, 5), (1, 97)], block_size=block_size, dtype=dtype, head_dim=128)
    step.assert_equals_tier_0(decoded(step, 2))


@pytest.mark.parametrize("kv_dtype", [torch.int8, torch.bfloat16])
def test_a_cache_of_lower_precision_is_read_in_the_precision_of_the_queries(kv_dtype):
    step = a_step([(1, 5), (1, 140), (4, 70)], num_kv_heads=2, dtype=torch.float32, kv_dtype=kv_dtype)
    out_THE = decoded(step, 2)
    out_THE[2:] = extended(step)[2:]
    step.assert_equals_tier_0(out_THE)


def test_padding_rows_of_a_graph_give_zeros_and_no_nan():
    step = a_step([(1, 20), (1, 40)])
    table_BM = torch.cat((step.batch.block_table_BM, torch.zeros_like(step.batch.block_table_BM)))
    context_lens_B = torch.tensor([20, 40, 0, 0], dtype=torch.int32, device=DEVICE)
    batch = CudaBatch.decoding(torch.zeros(4, dtype=torch.int64, device=DEVICE), table_BM, context_lens_B)
    q_BHE = torch.cat((step.q_THE, step.q_THE))
    for num_parts in (1, 3):
        out_BHE = torch.full_like(q_BHE, torch.nan)
        attend_decode_rows(q_BHE, step.kv, batch, step.scale, Split(num_parts, 1), out_BHE)
        step.assert_equals_tier_0(out_BHE[:2])
        assert (out_BHE[2:] == 0).all()


def test_lengths_are_read_from_the_device_so_a_batch_can_be_reused_for_later_steps():
    step = a_step([(1, 20), (1, 40)])
    context_lens_B = torch.tensor([20, 40], dtype=torch.int32, device=DEVICE)
    batch = CudaBatch.decoding(step.batch.slots_T, step.batch.block_table_BM, context_lens_B)
    context_lens_B.copy_(torch.tensor([3, 33]))
    ops = CudaOps(torch.float32, num_multiprocessors=4)
    shorter = Step(step.q_THE, step.kv, a_step([(1, 3), (1, 33)]).batch)
    shorter.batch.block_table_BM.copy_(step.batch.block_table_BM[:, : shorter.batch.block_table_BM.shape[1]])
    shorter.assert_equals_tier_0(ops.attend(step.q_THE, step.kv, batch, step.scale))


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([(9, 9)], id="whole prompt"),
        pytest.param([(5, 70)], id="chunk behind a long context"),
        pytest.param([(60, 60), (3, 8), (2, 2)], id="several rows, more tokens than a tile has"),
        pytest.param([(2, 200), (50, 129), (11, 11)], id="rows that begin inside tiles"),
    ],
)
@pytest.mark.parametrize("group_size", [1, 3])
def test_longer_rows_are_attended_causally(rows, group_size):
    step = a_step(rows, num_kv_heads=2, group_size=group_size)
    step.assert_equals_tier_0(extended(step))


@pytest.mark.parametrize(("head_dim", "dtype"), [(64, torch.float16), (96, torch.bfloat16), (256, torch.bfloat16)])
def test_longer_rows_in_lower_precision(head_dim, dtype):
    step = a_step([(40, 150), (7, 7)], group_size=4, head_dim=head_dim, dtype=dtype)
    step.assert_equals_tier_0(extended(step))


def test_each_kernel_leaves_the_other_ones_rows_alone():
    step = a_step([(1, 30), (4, 9), (1, 2)])
    assert (decoded(step, 2)[1:5] == UNTOUCHED).all()
    assert (extended(step)[[0, 5]] == UNTOUCHED).all()


def test_a_mixed_step_of_strided_queries_goes_through_both_kernels():
    step = a_step([(1, 30), (4, 9), (1, 2), (20, 33)], num_kv_heads=2)
    num_tokens, num_heads, head_dim = step.q_THE.shape
    # As they come from the qkv product: beside keys and values.
    qkv_TXE = torch.randn(num_tokens, num_heads + 4, head_dim, device=DEVICE)
    qkv_TXE[:, :num_heads] = step.q_THE
    ops = CudaOps(torch.float32, num_multiprocessors=4)
    step.assert_equals_tier_0(ops.attend(qkv_TXE[:, :num_heads], step.kv, step.batch, step.scale))


def test_the_split_follows_from_shapes_fills_the_gpu_and_leaves_no_long_row_to_one_program():
    assert choose_split(num_rows=1, num_kv_heads=8, num_multiprocessors=132) == Split(MAX_PARTS, 1)
    assert choose_split(num_rows=8, num_kv_heads=8, num_multiprocessors=132) == Split(8, 1)
    assert choose_split(num_rows=256, num_kv_heads=8, num_multiprocessors=132) == Split(4, 256)


def varlen_attn_by_definition(q, k, v, query_starts, context_starts, max_q, max_k, *, scale, is_causal):
    """Return causal attention of ragged rows, aligned at their ends, as torch's FlashAttention has it."""
    assert is_causal
    parts = []
    for row in range(len(query_starts) - 1):
        q_HCE = q[query_starts[row] : query_starts[row + 1]].transpose(0, 1)
        k_HLE, v_HLE = (
            x[context_starts[row] : context_starts[row + 1]].repeat_interleave(q.shape[1] // x.shape[1], 1)
            for x in (k, v)
        )
        k_HLE, v_HLE = k_HLE.transpose(0, 1), v_HLE.transpose(0, 1)
        num_queries, num_keys = q_HCE.shape[1], k_HLE.shape[1]
        assert num_queries <= max_q and num_keys <= max_k
        mask = torch.ones(num_queries, num_keys, dtype=torch.bool, device=q.device).tril(num_keys - num_queries)
        out_HCE = torch.nn.functional.scaled_dot_product_attention(q_HCE, k_HLE, v_HLE, attn_mask=mask, scale=scale)
        parts.append(out_HCE.transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize("kv_dtype", [torch.float16, torch.int8])
def test_prompts_may_be_attended_by_torch_over_gathered_blocks(kv_dtype):
    step = a_step([(1, 30), (4, 40), (1, 2), (20, 33)], num_kv_heads=2, dtype=torch.float16, kv_dtype=kv_dtype)
    varlen = VarlenAttention(varlen_attn_by_definition, {"is_causal": True})
    ops = CudaOps(torch.float16, num_multiprocessors=4, varlen=varlen)
    step.assert_equals_tier_0(ops.attend(step.q_THE, step.kv, step.batch, step.scale))


def test_torchs_varlen_attention_is_recognised_by_its_signature():
    varlen = VarlenAttention.probe()
    assert varlen is None or "varlen" in varlen.name
