"""The language of kernels: everything in it is Any."""

from typing import Any, TypeAlias

constexpr: TypeAlias = Any
tensor: TypeAlias = Any

def __getattr__(name: str) -> Any: ...
