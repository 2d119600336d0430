"""What our kernels use of Triton, so that types are checked where it is not installed. Inside kernels all is Any."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, overload

from triton import language as language

class Kernel(Protocol):
    """A jitted function: called from other kernels, or launched over a grid."""

    def __getitem__(self, grid: Sequence[int]) -> Callable[..., object]: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

@overload
def jit(fn: Callable[..., Any]) -> Kernel: ...
@overload
def jit(*, do_not_specialize: Sequence[str]) -> Callable[[Callable[..., Any]], Kernel]: ...
def cdiv(x: int, y: int) -> int: ...
def next_power_of_2(n: int) -> int: ...

__version__: str
