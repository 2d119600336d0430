"""Every operation of the CUDA tier against tier 0 on the same device, in shapes of real models.

T tokens in step, D model dim, R outputs, I inputs, H query heads, E head dim, V vocabulary rows.
"""

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.random_model import BLOCK_SIZE
from benchmarks.gpu.rig import Rig
from benchmarks.gpu.sections import Figures, Row
from parallel.attention.base import AttentionBatch, LayerKV
from parallel.attention.sdpa import write_kv
from parallel.cuda.sampler import DeviceSampler
from parallel.cuda.staging import row_sampling
from parallel.formats.quantise import quantise_fp8, quantise_int8
from parallel.formats.quantised import QuantFormat, QuantisedMatrix
from parallel.groups.solo import SoloGroup
from parallel.ops.base import HeadNorms, HeadShape, Ops
from parallel.ops.torch_ops import TorchOps
from parallel.sampling.rows import NO_TOP_K, SampleBatch
from parallel.sampling.sampler import Sampler

_TOLERANCE = 1e-2
"""Of |difference| / |expected|: two roundings to bfloat16 differ by 3e-3."""
_FP8_TOLERANCE = 4e-2
_SAME_CHOICES = 0.95
"""Share of draws: exp may differ in its last bit, which moves a token whose number lies on a boundary."""


class KernelShapes(NamedTuple):
    """What kernels are tried on."""

    widths: tuple[int, ...] = (576, 1024, 4096, 8192)
    heads: tuple[HeadShape, ...] = (
        HeadShape(32, 8, 128),
        HeadShape(16, 8, 128),
        HeadShape(9, 3, 64),
        HeadShape(8, 4, 256),
    )
    steps: tuple[tuple[str, tuple[tuple[int, int], ...]], ...] = (
        ("one row", ((1, 4097),)),
        ("32 rows", tuple((1, 17 * row + 1) for row in range(32))),
        ("256 rows", tuple((1, 1024 - row) for row in range(256))),
        ("prompt", ((1500, 1500),)),
        ("chunk", ((300, 2100),)),
        ("mixed", ((1, 900), (513, 513), (1, 1), (64, 3000), (2, 2))),
    )
    """Rows as (tokens computed now, tokens of context)."""
    matrices: tuple[tuple[int, int], ...] = ((6144, 4096), (28672, 4096), (576, 1536))
    batches: tuple[int, ...] = (1, 16, 64, 200)
    vocabulary: int = 151936
    sampled_rows: int = 60
    repeats: int = 10
    """Of what is timed."""


def kernel_rows(rig: Rig, shapes: KernelShapes) -> Iterator[Row]:
    """Yield a comparison for each operation, shape and format."""
    tier_0, ours = TorchOps(rig.dtype), rig.ops()
    for width in shapes.widths:
        yield Row(f"add and norm {width}", lambda w=width: _compare(lambda ops: _norm(rig, ops, w), tier_0, ours))
        yield Row(f"silu and multiply {width}", lambda w=width: _compare(lambda ops: _silu(rig, ops, w), tier_0, ours))
    for heads in shapes.heads:
        for kv_format in ("bf16", "int8"):
            yield Row(
                f"rotate and write {tuple(heads)}, KV {kv_format}",
                lambda h=heads, f=kv_format: _compare(lambda ops: _rotate(rig, ops, h, f), tier_0, ours),
            )
            for name, rows in shapes.steps:
                yield Row(
                    f"attention {tuple(heads)}, KV {kv_format}, {name}",
                    lambda h=heads, f=kv_format, r=rows: _compare(lambda ops: _attend(rig, ops, h, f, r), tier_0, ours),
                )
    for quant_format in (QuantFormat.INT8, QuantFormat.INT4, QuantFormat.FP8):
        for matrix in shapes.matrices:
            for num_tokens in shapes.batches:
                yield Row(
                    f"product {quant_format.name} {matrix} of {num_tokens}",
                    lambda q=quant_format, m=matrix, n=num_tokens: _product(rig, q, m, n, shapes.repeats),
                )
    yield Row("embedding", lambda: _compare(lambda ops: _embed(rig, ops, shapes), tier_0, ours))
    yield Row("most likely tokens", lambda: _compare(lambda ops: _best(rig, ops, shapes), tier_0, ours))
    yield Row("sampling, with and without filters", lambda: _sample(rig, shapes))


def _compare(work: Callable[[Ops], Tensor], tier_0: Ops, ours: Ops, tolerance: float = _TOLERANCE) -> Figures:
    expected, actual = work(tier_0).float(), work(ours).float()
    return _judged(actual, expected, tolerance)


def _judged(actual: Tensor, expected: Tensor, tolerance: float) -> Figures:
    """Return the relative error; not finite numbers fail too."""
    error = ((actual - expected).norm() / expected.norm().clamp(min=1e-20)).item()
    return {"error": float(f"{error:.3g}"), "is_right": error < tolerance}


def _randn(rig: Rig, *shape: int, seed: int = 0, dtype: torch.dtype | None = None) -> Tensor:
    generator = torch.Generator(rig.device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=rig.device).to(dtype or rig.dtype)


def _norm(rig: Rig, ops: Ops, width: int) -> Tensor:
    x_TD, residual_TD = _randn(rig, 40, width), _randn(rig, 40, width, seed=1)
    normed_TD = ops.add_rms_norm(x_TD, residual_TD, _randn(rig, width, seed=2), 1e-6)
    return torch.cat((normed_TD, residual_TD))


def _silu(rig: Rig, ops: Ops, width: int) -> Tensor:
    return ops.silu_mul(_randn(rig, 40, 2 * width))


def _cache(rig: Rig, ops: Ops, heads: HeadShape, kv_format: str, num_blocks: int) -> LayerKV:
    dtype = torch.int8 if kv_format == "int8" else rig.dtype
    layout = ops.kv_layout(BLOCK_SIZE, heads.num_kv_heads, heads.head_dim, dtype)
    key, value = (torch.zeros((num_blocks, *layout.key), dtype=dtype, device=rig.device) for _ in range(2))
    if layout.scale is None:
        return LayerKV(key, value)
    return LayerKV(key, value, *(torch.zeros((num_blocks, *layout.scale), device=rig.device) for _ in range(2)))


def _rotate(rig: Rig, ops: Ops, heads: HeadShape, kv_format: str) -> Tensor:
    num_tokens, head_dim = 40, heads.head_dim
    qkv_TR = _randn(rig, num_tokens, (heads.num_query_heads + 2 * heads.num_kv_heads) * head_dim)
    kv = _cache(rig, ops, heads, kv_format, 3)
    slots_T = torch.arange(num_tokens, device=rig.device).flip(0)
    frequencies = 10000 ** -torch.linspace(0, 1, head_dim // 2, device=rig.device)
    rotation_TE = ops.rotation(torch.arange(num_tokens, device=rig.device) * 601, frequencies)
    norms = HeadNorms(_randn(rig, head_dim, seed=1), _randn(rig, head_dim, seed=2), 1e-6)
    q_THE = ops.rotate_and_write(qkv_TR, heads, norms, rotation_TE, kv, AttentionBatch((), (), slots_T, slots_T))
    scales = [1.0 if scale is None else scale.unsqueeze(-1) for scale in (kv.key_scale, kv.value_scale)]
    written = [(codes * scale).float().flatten() for codes, scale in zip((kv.key, kv.value), scales, strict=True)]
    return torch.cat((q_THE.float().flatten(), *written))


def _attend(rig: Rig, ops: Ops, heads: HeadShape, kv_format: str, rows: tuple[tuple[int, int], ...]) -> Tensor:
    counts = [-(-context // BLOCK_SIZE) for _, context in rows]
    block_ids = list(range(sum(counts)))
    random.Random(0).shuffle(block_ids)
    table_BM = torch.zeros(len(rows), max(counts), dtype=torch.int64)
    for row, count in enumerate(counts):
        table_BM[row, :count] = torch.tensor([block_ids.pop() for _ in range(count)])
    kv = _cache(rig, ops, heads, kv_format, sum(counts))
    num_slots, num_tokens = sum(counts) * BLOCK_SIZE, sum(now for now, _ in rows)
    shape = (num_slots, heads.num_kv_heads, heads.head_dim)
    write_kv(kv, _randn(rig, *shape), _randn(rig, *shape, seed=1), torch.arange(num_slots, device=rig.device))
    batch = AttentionBatch(
        query_lens=tuple(now for now, _ in rows),
        context_lens=tuple(context for _, context in rows),
        slots_T=torch.zeros(num_tokens, dtype=torch.int64, device=rig.device),
        block_table_BM=table_BM.to(rig.device),
    )
    q_THE = _randn(rig, num_tokens, heads.num_query_heads, heads.head_dim, seed=2)
    return ops.attend(q_THE, kv, batch, heads.head_dim**-0.5)


def _weight(rig: Rig, quant_format: QuantFormat, shape: tuple[int, int]) -> QuantisedMatrix | None:
    weight_RI = _randn(rig, *shape, dtype=torch.float32)
    if quant_format is QuantFormat.INT8:
        return quantise_int8(weight_RI)
    if quant_format is QuantFormat.FP8:
        return quantise_fp8(weight_RI)
    generator = torch.Generator(rig.device).manual_seed(1)
    codes_RI = torch.randint(0, 16, shape, dtype=torch.uint8, device=rig.device, generator=generator)
    scales_RG = _randn(rig, shape[0], shape[1] // 32, dtype=torch.float16)
    return QuantisedMatrix(quant_format, codes_RI, scales_RG, -8 * scales_RG)


def _product(rig: Rig, quant_format: QuantFormat, shape: tuple[int, int], num_tokens: int, repeats: int) -> Figures:
    weight, x_TI = _weight(rig, quant_format, shape), _randn(rig, num_tokens, shape[1], seed=3)
    assert weight is not None, "the inputs of every shape are whole groups"
    matmul = rig.ops().matmul(weight, None)
    tolerance = _FP8_TOLERANCE if quant_format is QuantFormat.FP8 else _TOLERANCE
    judged = _judged(matmul(x_TI).float(), x_TI.float() @ weight.dequantised().T, tolerance)
    return {**judged, "us": round(rig.seconds_of(lambda: matmul(x_TI), repeats) * 1e6, 1), "kernel": matmul.name}


def _embed(rig: Rig, ops: Ops, shapes: KernelShapes) -> Tensor:
    last = shapes.vocabulary - 1
    rows_T = torch.tensor([0, last, last + 1, -1, 7], device=rig.device)
    return ops.embedding(_randn(rig, shapes.vocabulary, shapes.widths[0]), None)(rows_T)


def _best(rig: Rig, ops: Ops, shapes: KernelShapes) -> Tensor:
    best = ops.best(_randn(rig, 9, shapes.vocabulary, dtype=torch.float32))
    return torch.cat((best.index_S.float(), best.logit_S))


def _sample(rig: Rig, shapes: KernelShapes) -> Figures:
    """Compare what a recorded step chooses with what tier 0 does: greedy, by temperature, with each filter."""
    num_rows, vocabulary = shapes.sampled_rows, shapes.vocabulary
    dice = np.random.default_rng(0)
    row_S = np.arange(num_rows)
    batch = SampleBatch(
        random_P=row_S[row_S % 5 > 0],
        uniform_P=dice.random(num_rows)[row_S % 5 > 0],
        temperature_P=np.full(num_rows, 0.8, np.float32)[row_S % 5 > 0],
        top_k_P=np.where(row_S % 5 == 1, 40, NO_TOP_K)[row_S % 5 > 0],
        top_p_P=np.where(row_S % 5 == 2, 0.9, 1.0)[row_S % 5 > 0],
        min_p_P=np.where(row_S % 5 == 3, 0.05, 0.0)[row_S % 5 > 0],
        logprobs_L=np.empty(0, np.int64),
        num_logprobs_L=np.empty(0, np.int64),
        edits=None,
    )
    logits_SV = _randn(rig, num_rows, vocabulary, dtype=torch.float32) * 3
    expected = Sampler(SoloGroup(), range(vocabulary), rig.device).sample(logits_SV.clone(), batch)
    rows = row_sampling(batch, num_rows, rig.on)
    sampler = DeviceSampler(SoloGroup(), range(vocabulary), rig.device)
    token_id_S = torch.zeros(num_rows, dtype=torch.int64, device=rig.device)

    def choose() -> None:
        token_id_S.copy_(sampler.sample(logits_SV, rows, has_filters=True).token_id_S)

    replay = rig.on.record(choose)
    replay()
    same = float((token_id_S.cpu().numpy() == expected.token_ids_S).mean())
    seconds = rig.seconds_of(replay, shapes.repeats)
    return {"same": round(same, 3), "is_right": same >= _SAME_CHOICES, "us": round(seconds * 1e6, 1)}
