"""Where kernel tests run: on the GPU if there is one, else on the CPU in Triton's interpreter.

Import it before anything of `parallel.cuda`; `TRITON_INTERPRET` must have been set before the first import of triton
(tests/conftest.py does). The interpreter rounds and multiplies bfloat16 and fp8 in its own way, and serves one thread
at a time; here it is made to do as the hardware does.
"""

import threading
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

_NARROW = {"bf16": torch.bfloat16, "fp8e4nv": torch.float8_e4m3fn}
_WIDE = {"fp32": (torch.float32, np.float32), "fp16": (torch.float16, np.float16)}
_FLOATS = {**_NARROW, **{name: dtype for name, (dtype, _) in _WIDE.items()}, "fp64": torch.float64}
_PLAIN_CAST = interpreter.InterpreterBuilder.cast_impl


def _convert_float(values: np.ndarray, source: Any, target: Any, rounding_mode: Any) -> np.ndarray:
    """Return the bits of `values` in another type of float, rounded to the nearest even one, fp8 saturating."""
    tensor = torch.from_numpy(np.ascontiguousarray(values)).view(_FLOATS[source.name]).to(_FLOATS[target.name])
    if target.name == "fp8e4nv":
        tensor = torch.from_numpy(np.ascontiguousarray(values)).view(_FLOATS[source.name]).clamp(-448, 448)
        tensor = tensor.to(torch.float8_e4m3fn)
    bits = getattr(np, f"uint{target.primitive_bitwidth}")
    return tensor.view(getattr(torch, f"uint{target.primitive_bitwidth}")).numpy().view(bits).reshape(values.shape)


def _cast(builder: Any, source: Any, target: Any) -> Any:
    """Return integers as bfloat16, which is kept as its bits; other types as numpy casts them."""
    if target.scalar.name == "bf16" and source.dtype.scalar.is_int():
        wide = interpreter.TensorHandle(source.data.astype(np.float32), tl.float32)
        return builder.create_fp_to_fp(wide, target, None)
    return _PLAIN_CAST(builder, source, target)


def _as_numbers(handle: Any) -> np.ndarray:
    if handle.dtype.scalar.name not in _NARROW:
        return handle.data
    bits = torch.from_numpy(np.ascontiguousarray(handle.data))
    return bits.view(_NARROW[handle.dtype.scalar.name]).float().numpy()


def _create_dot(builder: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
    product = np.matmul(_as_numbers(a), _as_numbers(b), dtype=d.data.dtype)
    return interpreter.TensorHandle(product + d.data, d.dtype.scalar)


def _make_exact() -> None:
    lock, run = threading.RLock(), interpreter.GridExecutor.__call__

    def run_alone(executor: Any, *args: Any, **kwargs: Any) -> None:
        # -inf and NaN are values like others to a kernel.
        with lock, np.errstate(all="ignore"):
            run(executor, *args, **kwargs)

    interpreter.GridExecutor.__call__ = run_alone
    interpreter.InterpreterBuilder.create_dot = _create_dot
    interpreter.InterpreterBuilder.cast_impl = _cast
    interpreter._convert_float = _convert_float


if DEVICE.type == "cpu":
    _make_exact()
