"""Every operation of the CUDA tier against tier 0 on a real GPU, in shapes of real models."""

import numpy as np
import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

if not torch.cuda.is_available():
    # What follows holds Triton kernels, and Triton may be missing.
    pytest.skip("needs a CUDA device", allow_module_level=True)

from parallel.attention.base import AttentionBatch  # noqa: E402
from parallel.cuda.attention_varlen import VarlenAttention  # noqa: E402
from parallel.cuda.batch import CudaBatch  # noqa: E402
from parallel.cuda.choose import RowSampling  # noqa: E402
from parallel.cuda.linear import Fp8Matmul, scaled_matmul  # noqa: E402
from parallel.cuda.ops import CudaOps  # noqa: E402
from parallel.cuda.quantised import dequantise, multiply, pack  # noqa: E402
from parallel.cuda.sampler import DeviceSampler  # noqa: E402
from parallel.cuda.support import fp8_obstacle  # noqa: E402
from parallel.formats.quantise import quantise_fp8, quantise_int8  # noqa: E402
from parallel.formats.quantised import QuantFormat, QuantisedMatrix  # noqa: E402
from parallel.groups.solo import SoloGroup  # noqa: E402
from parallel.ops.base import HeadNorms, HeadShape  # noqa: E402
from parallel.ops.torch_ops import TorchOps  # noqa: E402
from parallel.sampling.params import SamplingParams  # noqa: E402
from parallel.sampling.random import uniforms  # noqa: E402
from parallel.sampling.sampler import Sampler  # noqa: E402
from tests.support.cuda_steps import Step, a_step, empty_kv  # noqa: E402
from tests.support.sharded_sampling import BatchOf  # noqa: E402

DEVICE = torch.device("cuda")
BFLOAT16 = torch.bfloat16


def cuda_ops(dtype: torch.dtype = BFLOAT16, **options) -> CudaOps:
    return CudaOps(dtype, torch.cuda.get_device_properties(DEVICE).multi_processor_count, **options)


def randn(*shape: int, dtype: torch.dtype = BFLOAT16, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator(DEVICE).manual_seed(seed), device=DEVICE).to(dtype)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 2e-2) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


MODELS = {
    "8B": {"num_kv_heads": 8, "group_size": 4, "head_dim": 128},
    "0.6B": {"num_kv_heads": 8, "group_size": 2, "head_dim": 128},
    "135M": {"num_kv_heads": 3, "group_size": 3, "head_dim": 64},
    "wide heads": {"num_kv_heads": 4, "group_size": 2, "head_dim": 256},
    "odd heads": {"num_kv_heads": 4, "group_size": 1, "head_dim": 96},
}
STEPS = {
    "one row": [(1, 4097)],
    "32 rows": [(1, 17 * row + 1) for row in range(32)],
    "prompt": [(1500, 1500)],
    "chunk": [(300, 2100)],
    "mixed": [(1, 900), (513, 513), (1, 1), (64, 3000), (2, 2)],
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("rows", STEPS)
@pytest.mark.parametrize("kv_dtype", [BFLOAT16, torch.int8])
def test_attention(model, rows, kv_dtype):
    step = a_step(STEPS[rows], dtype=BFLOAT16, kv_dtype=kv_dtype, **MODELS[model])
    step.assert_equals_tier_0(cuda_ops().attend(step.q_THE, step.kv, step.batch, step.scale))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_attention_in_other_precisions(dtype):
    step = a_step(STEPS["mixed"], dtype=dtype, **MODELS["135M"])
    step.assert_equals_tier_0(cuda_ops(dtype).attend(step.q_THE, step.kv, step.batch, step.scale))


@pytest.mark.parametrize("model", MODELS)
def test_torchs_own_attention_of_prompts(model):
    varlen = VarlenAttention.probe()
    if varlen is None:
        pytest.skip("this torch has no varlen_attn that we know")
    step = a_step(STEPS["mixed"], dtype=BFLOAT16, **MODELS[model])
    step.assert_equals_tier_0(cuda_ops(varlen=varlen).attend(step.q_THE, step.kv, step.batch, step.scale))


def test_a_captured_decode_step_serves_later_lengths():
    longest = a_step([(1, 900), (1, 300), (1, 40)], dtype=BFLOAT16, **MODELS["8B"])
    context_lens_B = torch.zeros(4, dtype=torch.int32, device=DEVICE)
    table_BM = torch.nn.functional.pad(longest.batch.block_table_BM, (0, 0, 0, 1))
    batch = CudaBatch.decoding(torch.full((4,), -1, device=DEVICE), table_BM, context_lens_B)
    q_BHE = torch.nn.functional.pad(longest.q_THE, (0, 0, 0, 0, 0, 1))
    ops = cuda_ops()
    ops.attend(q_BHE, longest.kv, batch, longest.scale)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out_BHE = ops.attend(q_BHE, longest.kv, batch, longest.scale)
    for lengths in [(900, 300, 40), (1, 299, 16), (517, 2, 33)]:
        context_lens_B[:3] = torch.tensor(lengths, dtype=torch.int32)
        graph.replay()
        given = AttentionBatch((1, 1, 1), lengths, longest.batch.slots_T, longest.batch.block_table_BM)
        Step(longest.q_THE, longest.kv, given).assert_equals_tier_0(out_BHE[:3])
        assert (out_BHE[3] == 0).all()


@pytest.mark.parametrize("width", [576, 1024, 4096, 5120, 8192])
def test_norm_and_activation(width):
    x_TD, weight_D = randn(300, width), randn(width, seed=1)
    residuals = [randn(300, width, seed=2) for _ in range(2)]
    expected_TD = TorchOps(BFLOAT16).add_rms_norm(x_TD, residuals[0], weight_D, 1e-6)
    assert_close(cuda_ops().add_rms_norm(x_TD, residuals[1], weight_D, 1e-6), expected_TD)
    assert torch.equal(*residuals)
    assert_close(cuda_ops().silu_mul(randn(300, 2 * width)), TorchOps(BFLOAT16).silu_mul(randn(300, 2 * width)))


@pytest.mark.parametrize("shape", [HeadShape(32, 8, 128), HeadShape(9, 3, 64), HeadShape(16, 16, 96)])
@pytest.mark.parametrize("has_norms", [False, True])
@pytest.mark.parametrize("kv_dtype", [BFLOAT16, torch.int8])
def test_rotation_and_cache_writes(shape, has_norms, kv_dtype):
    num_tokens, (num_heads, num_kv_heads, head_dim) = 200, shape
    norms = HeadNorms(randn(head_dim, seed=1), randn(head_dim, seed=2), 1e-6) if has_norms else None
    qkv_TR = randn(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim)
    slots_T = torch.randperm(320, device=DEVICE)[:num_tokens]
    batch = AttentionBatch((), (), slots_T, slots_T)
    frequencies = 10000 ** -torch.linspace(0, 1, head_dim // 2, device=DEVICE)
    positions_T = torch.arange(num_tokens, device=DEVICE) * 601
    results = []
    for ops in (TorchOps(BFLOAT16), cuda_ops()):
        kv = empty_kv((20, 16, num_kv_heads, head_dim), kv_dtype)
        rotation_TE = ops.rotation(positions_T, frequencies)
        q_THE = ops.rotate_and_write(qkv_TR.clone(), shape, norms, rotation_TE, kv, batch)
        scales = [1, 1] if kv.key_scale is None else [kv.key_scale.unsqueeze(-1), kv.value_scale.unsqueeze(-1)]
        results.append((q_THE.float(), kv.key * scales[0], kv.value * scales[1]))
    for expected, actual in zip(*results, strict=True):
        assert_close(actual.float(), expected.float(), tolerance=5e-2)


def a_weight(quant_format: QuantFormat, num_outputs: int, num_inputs: int) -> QuantisedMatrix:
    weight_RI = randn(num_outputs, num_inputs, dtype=torch.float32)
    if quant_format is QuantFormat.INT8:
        weight = quantise_int8(weight_RI)
        assert weight is not None
        return weight
    if quant_format is QuantFormat.FP8:
        return quantise_fp8(weight_RI)
    codes = torch.randint(0, 16, weight_RI.shape, dtype=torch.uint8, device=DEVICE)
    scales = randn(num_outputs, num_inputs // 32, dtype=torch.float16)
    return QuantisedMatrix(quant_format, codes, scales, randn(*scales.shape, dtype=torch.float16, seed=1))


@pytest.mark.parametrize("quant_format", [QuantFormat.INT8, QuantFormat.INT4])
@pytest.mark.parametrize("sizes", [(6144, 4096), (576, 1536), (1000, 96)])
@pytest.mark.parametrize("num_tokens", [1, 16, 33, 64, 200])
def test_products_with_quantised_weights(quant_format, sizes, num_tokens):
    weight, x_TI = a_weight(quant_format, *sizes), randn(num_tokens, sizes[1])
    expected_TR = x_TI.float() @ weight.dequantised().T
    actual_TR = cuda_ops().matmul(weight, None)(x_TI).float()
    assert (actual_TR - expected_TR).norm() / expected_TR.norm() < 4e-3
    assert torch.equal(dequantise(pack(weight), torch.float32), weight.dequantised())
    if num_tokens <= 64:
        parts = [multiply(x_TI, pack(weight), None, num_parts).float() for num_parts in (1, 4)]
        assert (parts[0] - parts[1]).norm() / expected_TR.norm() < 4e-3


@pytest.mark.skipif(bool(torch.cuda.is_available() and fp8_obstacle(DEVICE)), reason="needs fp8 tensor cores")
@pytest.mark.parametrize("num_tokens", [1, 7, 256])
def test_products_with_fp8_weights(num_tokens):
    weight, x_TI = a_weight(QuantFormat.FP8, 6144, 4096), randn(num_tokens, 4096)
    matmul = cuda_ops(fp8=scaled_matmul()).matmul(weight, randn(6144))
    assert isinstance(matmul, Fp8Matmul)
    expected_TR = x_TI.float() @ weight.dequantised().T + randn(6144).float()
    assert (matmul(x_TI).float() - expected_TR).norm() / expected_TR.norm() < 0.04


SAMPLINGS = [
    {"temperature": 0.0},
    {"temperature": 0.8},
    {"top_k": 40, "top_p": 0.9},
    {"min_p": 0.05},
    {"temperature": 1.5, "top_p": 0.99},
    {"top_k": 1},
]


def test_sampling_takes_tier_0s_tokens_also_from_a_graph():
    width, requests = 151_936, []
    for seed, given in enumerate(SAMPLINGS * 10):
        requests.append((SamplingParams(max_tokens=9, seed=seed, **given), list(range(seed + 1)), 1))
    logits_SV = randn(len(requests), width).float() * 3
    expected = Sampler(SoloGroup(), range(width), torch.device("cpu")).sample(
        logits_SV.cpu(), BatchOf(requests)(range(width))
    )
    params = [params for params, _, _ in requests]
    numbers = uniforms(np.array([p.seed for p in params], np.uint64), np.array([len(ids) for _, ids, _ in requests]))
    rows = RowSampling(
        torch.tensor([p.temperature for p in params], device=DEVICE),
        torch.from_numpy(numbers).to(DEVICE),
        torch.tensor([p.top_k or 2**62 for p in params], device=DEVICE),
        torch.tensor([p.top_p for p in params], dtype=torch.float64, device=DEVICE),
        torch.tensor([p.min_p for p in params], dtype=torch.float64, device=DEVICE),
    )
    sampler = DeviceSampler(SoloGroup(), range(width), DEVICE)
    sampler.sample(logits_SV, rows, has_filters=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        chosen = sampler.sample(logits_SV, rows, has_filters=True)
    graph.replay()
    # exp differs in its last bit, which may move a token whose number lies on a boundary.
    assert (chosen.token_id_S.cpu().numpy() == expected.token_ids_S).mean() > 0.95
    assert not chosen.is_failed_S.any()


def test_embedding_and_best():
    weight_VD, rows_T = randn(50_000, 4096), torch.tensor([0, 49_999, 50_000, -1, 7], device=DEVICE)
    expected_TD = TorchOps(BFLOAT16).embedding(weight_VD, None)(rows_T)
    assert torch.equal(cuda_ops().embedding(weight_VD, None)(rows_T), expected_TD)
    logits_SV = randn(9, 50_000).float()
    expected, actual = TorchOps(BFLOAT16).best(logits_SV), cuda_ops().best(logits_SV)
    assert torch.equal(actual.index_S, expected.index_S)
    assert torch.equal(actual.logit_S, expected.logit_S)
