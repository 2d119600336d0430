"""Which rows each section has on a real GPU."""

from collections.abc import Callable, Iterator, Sequence

import torch

from benchmarks.gpu.bounds import Rates
from benchmarks.gpu.decode import ModelRows, Sizes, decode_attention
from benchmarks.gpu.kernels import KernelShapes, kernel_rows
from benchmarks.gpu.rates import measure_rates
from benchmarks.gpu.rig import Rig
from benchmarks.gpu.sections import Figures, Row
from benchmarks.gpu.shapes import LLAMA_8B, MODELS
from benchmarks.gpu.trace import measure_trace, mixed_requests

_FORMATS = {"8B": ("bf16", "fp8"), "0.6B": ("bf16",)}
"""Of each model's weights."""


class Plan:
    """The rows of all sections."""

    def __init__(self, rig: Rig, found: dict[str, dict[str, Figures]], models: Sequence[str]) -> None:
        """`found` is what the report comes to hold: rates are read from it."""
        self._rig = rig
        self._found = found
        self._models = models

    def rows(self) -> dict[str, Callable[[], Iterator[Row]]]:
        """Return each section's rows, in the order in which they are taken."""
        return {
            "rates": lambda: iter([Row("card", self._take_rates)]),
            "kernels": lambda: kernel_rows(self._rig, KernelShapes()),
            "attention": self._attention,
            "decode": self._decode,
            "trace": self._trace,
            "two ranks": self._two_ranks,
        }

    def _take_rates(self) -> Figures:
        measured = measure_rates(self._rig)
        gigabytes, tflops = measured.copy_bytes_per_s / 1e9, measured.matmul_flops_per_s / 1e12
        return {"copy_gb_per_s": round(gigabytes, 1), "matmul_tflops": round(tflops, 1)}

    def _rates(self) -> Rates:
        figures = self._found["rates"]["card"]
        return Rates(figures["copy_gb_per_s"] * 1e9, figures["matmul_tflops"] * 1e12)

    def _attention(self) -> Iterator[Row]:
        heads, rates = (LLAMA_8B.num_heads, LLAMA_8B.num_kv_heads, LLAMA_8B.head_dim), self._rates()
        yield Row("decode 64 rows of 4096", lambda: decode_attention(self._rig, rates, 64, 4096, heads))
        yield Row("decode 1 row of 32768", lambda: decode_attention(self._rig, rates, 1, 32768, heads))

    def _decode(self) -> Iterator[Row]:
        for name in self._models:
            for weight_format in _FORMATS[name]:
                for kv_format in ("bf16", "int8"):
                    formats = (weight_format, kv_format)
                    yield from ModelRows(self._rig, self._rates(), MODELS[name], formats, Sizes()).rows(name)

    def _trace(self) -> Iterator[Row]:
        for name in reversed(self._models):
            spec = MODELS[name]
            yield Row(name, lambda spec=spec: measure_trace(self._rig, spec, mixed_requests(256), 256, 8192))

    def _two_ranks(self) -> Iterator[Row]:
        reason = f"needs a process for each of two GPUs; this call is one, and sees {torch.cuda.device_count()}"
        yield Row("all-reduce, decode", lambda: {"skipped": reason})
