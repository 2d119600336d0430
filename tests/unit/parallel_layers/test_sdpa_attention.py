"""Tier-0 attention against dense attention in float64, row by row, for any mix of rows."""

import random
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from parallel.attention.base import AttentionBatch, LayerKV
from parallel.attention.sdpa import SdpaAttention, write_kv

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@dataclass
class Scene:
    """Rows whose earlier KV is already in the cache, and the tokens of one step."""

    q_THE: Tensor
    k_TKE: Tensor
    v_TKE: Tensor
    kv: LayerKV
    batch: AttentionBatch
    histories: list[tuple[Tensor, Tensor]]
    """Each row's keys and values at all positions, [L, K, E]."""

    def attend(self, backend: SdpaAttention | None = None) -> Tensor:
        write_kv(self.kv, self.k_TKE, self.v_TKE, self.batch.slots_T)
        return (backend or SdpaAttention()).attend(self.q_THE, self.kv, self.batch, self.q_THE.shape[-1] ** -0.5)


def a_scene(
    rows: list[tuple[int, int]],
    num_kv_heads: int = 2,
    group_size: int = 3,
    head_dim: int = 8,
    block_size: int = 4,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Scene:
    """Rows are (tokens computed before, tokens now). Blocks lie in random order; the rest of the cache is rubbish."""
    generator = torch.Generator().manual_seed(seed)
    counts = [-(-(before + now) // block_size) for before, now in rows]
    ids = list(range(sum(counts) + 3))
    random.Random(seed).shuffle(ids)
    pool = (len(ids), block_size, num_kv_heads, head_dim)
    kv = LayerKV(*(1000 * torch.randn(pool, generator=generator).to(dtype) for _ in range(2)))
    tables, slots, histories = [], [], []
    for (before, now), count in zip(rows, counts, strict=True):
        table = [ids.pop() for _ in range(count)]
        row_slots = [table[i // block_size] * block_size + i % block_size for i in range(before + now)]
        history = [torch.randn(before + now, num_kv_heads, head_dim, generator=generator).to(dtype) for _ in range(2)]
        for cache, values in zip((kv.key, kv.value), history, strict=True):
            cache.flatten(0, 1)[row_slots[:before]] = values[:before]
        tables.append(table + [0] * (max(counts) - count))
        slots += row_slots[before:]
        histories.append(tuple(history))
    num_tokens = sum(now for _, now in rows)
    return Scene(
        q_THE=torch.randn(num_tokens, num_kv_heads * group_size, head_dim, generator=generator).to(dtype),
        k_TKE=torch.cat([keys[before:] for (before, _), (keys, _) in zip(rows, histories, strict=True)]),
        v_TKE=torch.cat([values[before:] for (before, _), (_, values) in zip(rows, histories, strict=True)]),
        kv=kv,
        batch=AttentionBatch(
            query_lens=tuple(now for _, now in rows),
            context_lens=tuple(before + now for before, now in rows),
            slots_T=torch.tensor(slots),
            block_table_BM=torch.tensor(tables),
        ),
        histories=histories,
    )


def dense_attention(scene: Scene) -> Tensor:
    """Return what attention is by definition, token by token."""
    outputs = []
    tokens = iter(scene.q_THE.double())
    for now, context, (keys, values) in zip(
        scene.batch.query_lens, scene.batch.context_lens, scene.histories, strict=True
    ):
        for length in range(context - now + 1, context + 1):
            q_HE = next(tokens)
            group_size = len(q_HE) // keys.shape[1]
            k_LHE, v_LHE = (x[:length].double().repeat_interleave(group_size, dim=1) for x in (keys, values))
            weights_HL = torch.einsum("he,lhe->hl", q_HE, k_LHE).mul(q_HE.shape[-1] ** -0.5).softmax(dim=-1)
            outputs.append(torch.einsum("hl,lhe->he", weights_HL, v_LHE))
    return torch.stack(outputs)


def assert_equals_dense(scene: Scene, backend: SdpaAttention | None = None) -> None:
    tolerance = TOLERANCE[scene.q_THE.dtype]
    torch.testing.assert_close(scene.attend(backend).double(), dense_attention(scene), rtol=tolerance, atol=tolerance)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 40), st.one_of(st.just(1), st.integers(1, 12))), min_size=1, max_size=7),
    num_kv_heads=st.integers(1, 3),
    group_size=st.integers(1, 4),
    block_size=st.sampled_from([1, 4, 8]),
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=st.integers(0, 9),
)
def test_any_mix_of_rows_equals_dense_attention(rows, num_kv_heads, group_size, block_size, dtype, seed):
    assert_equals_dense(a_scene(rows, num_kv_heads, group_size, 8, block_size, dtype, seed))


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([(0, 9)], id="whole prefill"),
        pytest.param([(5, 9)], id="a later chunk"),
        pytest.param([(8, 1), (0, 1), (30, 1)], id="decode, ragged"),
        pytest.param([(3, 1), (0, 6), (900, 1), (7, 5), (2, 1)], id="mixture, very ragged"),
        pytest.param([(1200, 1), (4, 1), (1100, 1), (6, 1), (500, 1)], id="decode in several groups"),
    ],
)
def test_each_kind_of_step_equals_dense_attention(rows):
    assert_equals_dense(a_scene(rows))


def test_new_keys_and_values_are_in_their_slots_afterwards():
    scene = a_scene([(3, 2), (5, 1)])
    scene.attend()
    assert torch.equal(scene.kv.key.flatten(0, 1)[scene.batch.slots_T], scene.k_TKE)
    assert torch.equal(scene.kv.value.flatten(0, 1)[scene.batch.slots_T], scene.v_TKE)


def test_rows_that_share_the_blocks_of_a_prefix_both_see_it():
    # The second row's first block is the first row's: same table entry, same content.
    scene = a_scene([(4, 1), (4, 3)], block_size=4)
    table_BM = scene.batch.block_table_BM.clone()
    table_BM[1, 0] = table_BM[0, 0]
    (first_keys, first_values), (second_keys, second_values) = scene.histories
    second_keys[:4], second_values[:4] = first_keys[:4], first_values[:4]
    batch = scene.batch
    scene.batch = AttentionBatch(batch.query_lens, batch.context_lens, batch.slots_T, table_BM)
    assert_equals_dense(scene)


def test_one_backend_serves_one_step_after_another():
    backend = SdpaAttention()
    assert_equals_dense(a_scene([(8, 1), (3, 4)]), backend)
    assert_equals_dense(a_scene([(8, 1), (3, 4)], seed=1), backend)
    assert_equals_dense(a_scene([(2, 1)], seed=2), backend)


def test_layers_of_one_step_share_its_shape_but_not_its_cache():
    backend, first, second = SdpaAttention(), a_scene([(8, 1), (3, 4)]), a_scene([(8, 1), (3, 4)])
    second.batch = first.batch
    second.v_TKE = -second.v_TKE
    second.kv = LayerKV(second.kv.key, -second.kv.value)
    second.histories = [(keys, -values) for keys, values in second.histories]
    assert_equals_dense(first, backend)
    assert_equals_dense(second, backend)


@pytest.mark.parametrize("rubbish", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_never_reaches_another_row(rubbish):
    """A short row's padding is some block of another row's, and a freed block is handed out with its old content."""
    scene = a_scene([(0, 1), (17, 1), (3, 1), (0, 3)])
    broken, expected = scene.batch.slots_T[:1], dense_attention(scene)
    scene.batch.block_table_BM[2, 1:] = scene.batch.block_table_BM[0, 0]
    scene.k_TKE[0], scene.v_TKE[0] = rubbish, rubbish
    out_THE = scene.attend()
    torch.testing.assert_close(out_THE[1:].double(), expected[1:], rtol=1e-5, atol=1e-5)
    assert scene.kv.key.flatten(0, 1)[broken].isfinite().all()
    assert scene.kv.value.flatten(0, 1)[broken].isfinite().all()


def test_a_cache_of_lower_precision_is_read_in_the_precision_of_the_queries():
    scene = a_scene([(8, 1), (3, 4)])
    scene.kv = LayerKV(scene.kv.key.bfloat16(), scene.kv.value.bfloat16())
    out_THE = scene.attend()
    assert out_THE.dtype == torch.float32
    torch.testing.assert_close(out_THE.double(), dense_attention(scene), rtol=2e-2, atol=2e-2)


def test_an_int8_cache_keeps_what_its_scales_can_tell_apart():
    scene = a_scene([(0, 9), (0, 4)], head_dim=32)
    shape = scene.kv.key.shape
    codes, scales = torch.full(shape, 99, dtype=torch.int8), torch.full(shape[:3], torch.nan)
    scene.kv = LayerKV(codes, codes.clone(), scales, scales.clone())
    out_THE = scene.attend()
    slots_T, written = scene.batch.slots_T, scene.kv
    kept_TKE = written.key.flatten(0, 1)[slots_T] * written.key_scale.flatten(0, 1)[slots_T].unsqueeze(-1)
    step_TK1 = scene.k_TKE.abs().amax(-1, keepdim=True) / 127
    assert ((kept_TKE - scene.k_TKE).abs() <= 0.51 * step_TK1).all()
    torch.testing.assert_close(out_THE.double(), dense_attention(scene), rtol=3e-2, atol=3e-2)
