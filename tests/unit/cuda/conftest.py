"""Kernels are tested in Triton's interpreter, or compiled where there is a GPU; without Triton these tests skip."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from parallel.cuda.support import has_triton

if has_triton():
    import tests.support.kernel_device  # noqa: F401  (before any kernel is made)


_WITHOUT_KERNELS = {"test_cuda_support.py", "test_symmetric_group.py"}


class _SkippedModule(pytest.Module):
    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        pytest.skip("triton is not installed: pip install triton", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    if has_triton() or module_path.name in _WITHOUT_KERNELS:
        return None
    return _SkippedModule.from_parent(parent, path=module_path)
