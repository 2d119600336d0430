"""Compiles every Triton kernel for a Hopper GPU without one, and prints what each takes: `name registers stack shared`.

    python -m tests.support.compile_kernels [tiny|all]

The kernels are launched by our own code, with tensors that have shapes but no memory; a stand-in for the GPU's driver
compiles and does not launch. Needs a process of its own, in which TRITON_INTERPRET is not set.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import jit
from triton.runtime.driver import driver

from parallel.attention.base import AttentionBatch, LayerKV
from parallel.cuda.attention_decode import Split, attend_decode_rows
from parallel.cuda.attention_extend import attend_longer_rows
from parallel.cuda.batch import CudaBatch
from parallel.cuda.choose import RowSampling, choose, draw, join_chunks, read_chunks
from parallel.cuda.embedding import QuantisedEmbedding
from parallel.cuda.filtered import draw_filtered
from parallel.cuda.linear import quantise_rows
from parallel.cuda.ops import CudaOps
from parallel.cuda.quantised import dequantise, multiply, pack
from parallel.cuda.random import uniforms
from parallel.formats.quantised import QuantFormat, QuantisedMatrix
from parallel.ops.base import HeadNorms, HeadShape

HOPPER = GPUTarget("cuda", 90, 32)
NOWHERE = torch.device("meta")


class Shape(NamedTuple):
    """The sizes of a model."""

    heads: HeadShape
    hidden_size: int
    ffn_size: int
    vocab_size: int


SHAPES = {
    "8B": Shape(HeadShape(32, 8, 128), 4096, 14336, 128256),
    "135M": Shape(HeadShape(9, 3, 64), 576, 1536, 49152),
    "wide heads": Shape(HeadShape(16, 8, 256), 2048, 8192, 256000),
    "odd heads": Shape(HeadShape(16, 16, 96), 3072, 8192, 32064),
}


class NoDriver:
    """Says that a Hopper is there."""

    def get_current_target(self) -> GPUTarget:
        return HOPPER

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compiled_kernels(launch_all: Any) -> dict[str, Any]:
    """Return the kernels that `launch_all` would launch, by name and options."""
    kernels: dict[str, Any] = {}
    compile_or_launch = jit.JITFunction.run

    def compile_only(function: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = compile_or_launch(function, *args, grid=grid, warmup=True, **kwargs)
        kernels[f"{function.__name__} {kernel.hash[:8]}"] = kernel
        return kernel

    driver.set_active(NoDriver())
    jit.JITFunction.run = compile_only
    launch_all()
    return kernels


def nowhere(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=NOWHERE)


def a_cache(shape: Shape, kv_dtype: torch.dtype) -> LayerKV:
    cache = (100, 16, shape.heads.num_kv_heads, shape.heads.head_dim)
    key, value = (nowhere(*cache, dtype=kv_dtype) for _ in range(2))
    if kv_dtype != torch.int8:
        return LayerKV(key, value)
    return LayerKV(key, value, *(nowhere(*cache[:3], dtype=torch.float32) for _ in range(2)))


def launch_attention(shape: Shape, kv_dtype: torch.dtype) -> None:
    heads, kv = shape.heads, a_cache(shape, kv_dtype)
    num_tokens, num_rows = 64, 4
    slots_T, table_BM = nowhere(num_tokens, dtype=torch.int64), nowhere(num_rows, 20, dtype=torch.int64)
    width = (heads.num_query_heads + 2 * heads.num_kv_heads) * heads.head_dim
    norms = HeadNorms(nowhere(heads.head_dim), nowhere(heads.head_dim), 1e-6)
    batch = AttentionBatch((), (), slots_T, table_BM)
    ops = CudaOps(torch.bfloat16, 132)
    for each in (norms, None):
        ops.rotate_and_write(nowhere(num_tokens, width), heads, each, nowhere(num_tokens, heads.head_dim), kv, batch)
    q_THE = nowhere(num_tokens, width).view(num_tokens, -1, heads.head_dim)[:, : heads.num_query_heads]
    step = CudaBatch.decoding(slots_T[:num_rows], table_BM, nowhere(num_rows, dtype=torch.int32))
    out_THE = nowhere(*q_THE.shape)
    for num_parts in (1, 8):
        attend_decode_rows(q_THE, kv, step, 0.1, Split(num_parts, 1), out_THE)
    attend_longer_rows(q_THE, kv, step, 0.1, out_THE)


def launch_elementwise(shape: Shape) -> None:
    ops = CudaOps(torch.bfloat16, 132)
    x_TD = nowhere(64, shape.hidden_size)
    ops.add_rms_norm(x_TD, x_TD, nowhere(shape.hidden_size), 1e-6)
    ops.silu_mul(nowhere(64, 2 * shape.ffn_size))
    quantise_rows(x_TD)
    ops.embedding(nowhere(shape.vocab_size, shape.hidden_size), None)(nowhere(64, dtype=torch.int64))


def launch_matmuls(shape: Shape, quant_format: QuantFormat) -> None:
    num_inputs, num_outputs = shape.hidden_size, shape.ffn_size
    codes = nowhere(num_outputs, num_inputs, dtype=torch.int8 if quant_format is QuantFormat.INT8 else torch.uint8)
    scales = nowhere(num_outputs, num_inputs // 32, dtype=torch.float16)
    weight = pack(QuantisedMatrix(quant_format, codes, scales, scales if quant_format is QuantFormat.INT4 else None))
    for num_tokens in (1, 32, 64):
        multiply(nowhere(num_tokens, num_inputs), weight, nowhere(num_outputs), 4)
    dequantise(weight, torch.bfloat16)
    QuantisedEmbedding(weight, torch.bfloat16, True)(nowhere(64, dtype=torch.int64))


def launch_sampling(shape: Shape) -> None:
    logits_SV = nowhere(4, shape.vocab_size, dtype=torch.float32)
    single, whole, double = (nowhere(4, dtype=dtype) for dtype in (torch.float32, torch.int64, torch.float64))
    rows = RowSampling(single, double, whole, double, double)
    chosen = choose(logits_SV, rows)
    draw_filtered(logits_SV, chosen.logit_S, rows, chosen.index_S)
    for temperature_S in (None, single):
        chunks = read_chunks(logits_SV, temperature_S)
        joined = join_chunks(chunks, temperature_S)
    draw(logits_SV, chunks, joined, single, double)
    uniforms(whole, whole)


def launch_tiny() -> None:
    """Launch every kernel once, in the form that an 8B model in bfloat16 has it."""
    shape = SHAPES["8B"]
    launch_attention(shape, torch.bfloat16)
    launch_elementwise(shape)
    launch_matmuls(shape, QuantFormat.INT4)
    launch_sampling(shape)


def launch_everything() -> None:
    """Launch every form there is, for all shapes."""
    for shape in SHAPES.values():
        for kv_dtype in (torch.bfloat16, torch.int8):
            launch_attention(shape, kv_dtype)
        launch_elementwise(shape)
        for quant_format in (QuantFormat.INT8, QuantFormat.INT4):
            launch_matmuls(shape, quant_format)
        launch_sampling(shape)


def usage(kernel: Any) -> str:
    """Return registers, stack and shared memory of a kernel, in bytes but for the registers."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        printed = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = (re.search(rf"{what}:(\d+)", printed) for what in ("REG", "STACK"))
    assert registers is not None and stack is not None, printed
    return f"{registers[1]} {stack[1]} {kernel.metadata.shared}"


def lines(kernels: dict[str, Any]) -> Iterator[str]:
    for name, kernel in sorted(kernels.items()):
        yield f"{name.split()[0]} {usage(kernel)}"


if __name__ == "__main__":
    chosen_launches = launch_everything if sys.argv[1:] == ["all"] else launch_tiny
    sys.stdout.write("\n".join(lines(compiled_kernels(chosen_launches))) + "\n")
