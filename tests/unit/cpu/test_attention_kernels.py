"""Paged attention in C: right by float64, and the same bits whatever else is computed at the same time."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import pytest
import torch
from torch import Tensor

from parallel.attention.base import AttentionBatch, LayerKV
from parallel.cpu.library import KernelLibrary
from parallel.cpu.ops import CpuOps
from parallel.ops.torch_ops import TorchOps
from tests.support.cpu_kv import dequantised, packed, random_kv
from tests.support.kernel_libraries import LEVELS, kernel_library, thread_pool

TOLERANCE = 2**-8 + 5e-4
"""Of what a query's values weigh together: weights are rounded to bfloat16 (2^-8) and come from a short polynomial
(1e-4, for a weight and for each peak it was moved to). Queries are rounded too, and so they are in what is compared."""
FORMATS = (torch.bfloat16, torch.int8)
# query heads, kv heads, head dim, block size
SHAPES = ((9, 3, 64, 16), (4, 4, 32, 32), (16, 1, 128, 64), (6, 2, 96, 16), (2, 1, 256, 48), (7, 1, 64, 16))
SMOLLM2 = SHAPES[0]
Shape = tuple[int, int, int, int]


@pytest.fixture(params=LEVELS)
def library(request: pytest.FixtureRequest) -> KernelLibrary:
    return kernel_library(request.param)


@dataclass(frozen=True)
class Request:
    """A request whose keys are all in the cache already, so a step may compute any of its tokens."""

    blocks: list[int]
    q_LHE: Tensor


@dataclass(frozen=True)
class Chunk:
    """Tokens of a request that a step computes."""

    request: Request
    first: int
    end: int


class Scene:
    """Requests over one cache, in blocks drawn at random; `shared` of the first are every request's."""

    def __init__(
        self, shape: Shape, dtype: torch.dtype, lengths: Sequence[int], shared: int = 0, seed: int = 0
    ) -> None:
        self.num_heads, num_kv_heads, self.head_dim, block_size = shape
        num_blocks = shared + sum(-(-length // block_size) for length in lengths)
        free = random.Random(seed).sample(range(num_blocks), num_blocks)
        prefix = [free.pop() for _ in range(shared)]
        self.kv = random_kv(num_blocks, block_size, num_kv_heads, self.head_dim, dtype, seed)
        self.block_size = block_size
        generator = torch.Generator().manual_seed(seed + 1)
        self.requests = [
            Request(
                [*prefix, *(free.pop() for _ in range(-(-length // block_size)))][: -(-length // block_size)],
                torch.randn(length, self.num_heads, self.head_dim, generator=generator),
            )
            for length in lengths
        ]

    def decode(self, request: Request) -> Chunk:
        """Return the last token alone."""
        return Chunk(request, len(request.q_LHE) - 1, len(request.q_LHE))

    def batch(self, chunks: Sequence[Chunk]) -> AttentionBatch:
        table = torch.zeros(len(chunks), max(len(chunk.request.blocks) for chunk in chunks), dtype=torch.int64)
        for row, chunk in enumerate(chunks):
            table[row, : len(chunk.request.blocks)] = torch.tensor(chunk.request.blocks)
        lens = tuple(chunk.end - chunk.first for chunk in chunks)
        return AttentionBatch(
            lens, tuple(chunk.end for chunk in chunks), torch.zeros(sum(lens), dtype=torch.int64), table
        )

    def queries(self, chunks: Sequence[Chunk]) -> Tensor:
        return torch.cat([chunk.request.q_LHE[chunk.first : chunk.end] for chunk in chunks])

    def attend(
        self, library: KernelLibrary, chunks: Sequence[Chunk], num_threads: int = 1, kv: LayerKV | None = None
    ) -> list[Tensor]:
        """Return each chunk's output."""
        ops = CpuOps(library, thread_pool(num_threads, library.level))
        batch = self.batch(chunks)
        out_THE = ops.attend(self.queries(chunks), kv or packed(self.kv), batch, self.head_dim**-0.5)
        return list(out_THE.split(batch.query_lens))

    def assert_right(self, chunk: Chunk, out_CHE: Tensor) -> None:
        """Compare with attention in float64, feature by feature."""
        k_NPKE, v_NPKE = dequantised(self.kv)
        k_LHE, v_LHE = (
            x[chunk.request.blocks].flatten(0, 1)[: chunk.end].repeat_interleave(self.num_heads // x.shape[2], 1)
            for x in (k_NPKE, v_NPKE)
        )
        q_CHE = chunk.request.q_LHE[chunk.first : chunk.end].bfloat16().double()
        scores_HCL = torch.einsum("che,lhe->hcl", q_CHE, k_LHE) * self.head_dim**-0.5
        is_later_CL = torch.arange(chunk.end) > torch.arange(chunk.first, chunk.end).unsqueeze(1)
        weights_HCL = scores_HCL.masked_fill(is_later_CL, -torch.inf).softmax(-1)
        exact_CHE = torch.einsum("hcl,lhe->che", weights_HCL, v_LHE)
        weight_CHE = torch.einsum("hcl,lhe->che", weights_HCL, v_LHE.abs())
        excess = ((out_CHE - exact_CHE).abs() - TOLERANCE * weight_CHE).max().item()
        assert excess < 1e-6, f"positions {chunk.first} to {chunk.end}"


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_is_that_of_float64(library: KernelLibrary, shape: Shape, dtype: torch.dtype):
    scene = Scene(shape, dtype, lengths=(1, 5, 63, 64, 65, 77, 130, 530, 1100))
    starts = (0, 0, 62, 63, 50, 0, 129, 527, 1099)
    chunks = [Chunk(request, first, len(request.q_LHE)) for request, first in zip(scene.requests, starts, strict=True)]
    for chunk, out_CHE in zip(chunks, scene.attend(library, chunks, num_threads=2), strict=True):
        scene.assert_right(chunk, out_CHE)


def test_attention_is_that_of_tier_0(library: KernelLibrary):
    scene = Scene(SMOLLM2, torch.bfloat16, lengths=(40, 3, 200))
    chunks = [Chunk(scene.requests[0], 7, 40), *map(scene.decode, scene.requests[1:])]
    tier_0 = TorchOps(torch.float32).attend(scene.queries(chunks), scene.kv, scene.batch(chunks), 0.125)
    # Queries are rounded here and not there: 2^-8 of scores of about 1, on top of what weights are rounded by.
    torch.testing.assert_close(torch.cat(scene.attend(library, chunks)), tier_0, rtol=0, atol=0.02)


@pytest.mark.parametrize("scale", (0.0, 30.0), ids=("flat", "peaked"))
def test_flat_and_peaked_weights_are_right(library: KernelLibrary, scale: float):
    scene = Scene(SMOLLM2, torch.bfloat16, lengths=(700,))
    request = Request(scene.requests[0].blocks, scene.requests[0].q_LHE * scale)
    chunk = Chunk(request, 690, 700)
    scene.assert_right(chunk, scene.attend(library, [chunk])[0])


def test_a_peak_that_rises_key_by_key_is_followed(library: KernelLibrary):
    scene = Scene((1, 1, 32, 16), torch.bfloat16, lengths=(640,))
    request = scene.requests[0]
    rising_L = torch.arange(640) * 16.0 - 5120
    scene.kv.key.zero_()
    scene.kv.key[request.blocks, :, 0, 0] = rising_L.view(-1, 16).bfloat16()
    request.q_LHE.fill_(1.0)
    chunk = Chunk(request, 0, 640)
    scene.assert_right(chunk, scene.attend(library, [chunk])[0])


# ---- bits ----


def assert_same(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_a_token_has_the_same_bits_alone_and_in_any_batch_and_with_any_threads(
    library: KernelLibrary, dtype: torch.dtype
):
    lengths = [1, 16, 63, 64, 65, 511, 512, 513, 700, 1100, *random.Random(0).choices(range(1, 600), k=23)]
    scene = Scene(SMOLLM2, dtype, lengths)
    chunks = [scene.decode(request) for request in scene.requests]
    alone = [scene.attend(library, [chunk])[0] for chunk in chunks]
    for num_threads in (1, 2, 3, 4):
        assert_same(scene.attend(library, chunks, num_threads), alone)
        longest = [chunks[9]]
        assert_same(scene.attend(library, longest, num_threads), alone[9:10])


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("shape", (SMOLLM2, (7, 1, 96, 32)), ids=str)
def test_a_token_has_the_same_bits_in_any_chunk_of_its_prompt(library: KernelLibrary, shape: Shape, dtype: torch.dtype):
    scene = Scene(shape, dtype, lengths=(600, 90, 300))
    request, other, decoding = scene.requests
    company = [Chunk(other, 10, 90), scene.decode(decoding)]
    whole = scene.attend(library, [Chunk(request, 0, 600)])[0]
    for position in (0, 15, 16, 64, 300, 511, 512, 599):
        assert torch.equal(scene.attend(library, [Chunk(request, position, position + 1)])[0][0], whole[position])
    for bounds in ((0, 1, 17, 600), (0, 250, 251, 599, 600)):
        for num_threads in (1, 3):
            parts = [
                scene.attend(library, [company[0], Chunk(request, first, end), company[1]], num_threads)[1]
                for first, end in zip(bounds, bounds[1:], strict=False)
            ]
            assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("shared", (3, 8, 21))
def test_rows_that_share_a_prefix_have_the_bits_they_have_alone(
    library: KernelLibrary, dtype: torch.dtype, shared: int
):
    # Some end inside the prefix, some have only just left it, one is there twice.
    ends = (0, -1, 1, 5, 16, 40, 41, 100, 350, -20)
    scene = Scene(SMOLLM2, dtype, [max(1, 16 * shared + end) for end in ends], shared)
    chunks = [scene.decode(request) for request in (*scene.requests, scene.requests[4])]
    chunks.append(Chunk(scene.requests[8], 16 * shared - 2, 16 * shared + 60))
    alone = [scene.attend(library, [chunk])[0] for chunk in chunks]
    for num_threads in (1, 4):
        assert_same(scene.attend(library, chunks, num_threads), alone)
    for chunk, out_CHE in zip(chunks, alone, strict=True):
        scene.assert_right(chunk, out_CHE)


def test_a_large_batch_that_shares_a_prefix_has_the_bits_of_rows_alone(library: KernelLibrary):
    scene = Scene(SMOLLM2, torch.bfloat16, [640 + length for length in range(40)], shared=40)
    chunks = [scene.decode(request) for request in scene.requests]
    for num_threads in (1, 2):
        together = scene.attend(library, chunks, num_threads)
        assert_same(
            [together[row] for row in (0, 17, 39)], [scene.attend(library, [chunks[r]])[0] for r in (0, 17, 39)]
        )


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_what_lies_after_a_token_in_its_block_changes_no_bit(library: KernelLibrary, dtype: torch.dtype):
    scene = Scene(SMOLLM2, dtype, lengths=(1, 37, 600))
    chunks = [scene.decode(request) for request in scene.requests]
    chunks.append(Chunk(scene.requests[2], 400, 570))
    expected = scene.attend(library, chunks)
    largest = 127 if dtype == torch.int8 else torch.finfo(dtype).max
    for request in scene.requests:
        block, used = request.blocks[-1], len(request.q_LHE) % scene.block_size
        for tensor in (scene.kv.key, scene.kv.value):
            tensor[block, used:] = largest
        for scale in (scene.kv.key_scale, scene.kv.value_scale):
            if scale is not None:
                scale[block, used:] = 1e30
    assert_same(scene.attend(library, chunks), expected)


def test_a_query_that_is_not_finite_harms_only_itself(library: KernelLibrary):
    scene = Scene(SMOLLM2, torch.bfloat16, lengths=(100, 100, 100), shared=5)
    chunks = [scene.decode(request) for request in scene.requests]
    expected = scene.attend(library, chunks)
    scene.requests[1].q_LHE[-1, 4, 3] = torch.nan
    out = scene.attend(library, chunks)
    assert_same([out[0], out[2]], [expected[0], expected[2]])
    assert out[1][0, 4].isnan().all()
    others = [head for head in range(9) if head != 4]
    assert torch.equal(out[1][0, others], expected[1][0, others])


def test_one_plan_serves_steps_of_every_size(library: KernelLibrary):
    scene = Scene(SMOLLM2, torch.bfloat16, lengths=(3, 600, 90, 20))
    ops = CpuOps(library, thread_pool(3, library.level))
    kv = packed(scene.kv)
    for count in (1, 4, 2):
        chunks = [Chunk(request, len(request.q_LHE) // 2, len(request.q_LHE)) for request in scene.requests[:count]]
        batch = scene.batch(chunks)
        out_THE = ops.attend(scene.queries(chunks), kv, batch, 0.125)
        ends = list(accumulate(batch.query_lens))
        scene.assert_right(chunks[-1], out_THE[ends[-1] - batch.query_lens[-1] :])
