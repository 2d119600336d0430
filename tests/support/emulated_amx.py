"""The kernels of the amx level on a CPU that has none: tile registers are emulated, everything else is what ships."""

import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

from parallel.cpu.build import FLAGS, SOURCES
from parallel.cpu.library import KernelLibrary, runnable_levels

NAME = "amx, emulated"


@cache
def emulated_amx_library() -> KernelLibrary:
    """Compile and load it; skips the test where there is no compiler or no AVX-512 to carry the rest."""
    level = next((level for level in runnable_levels() if level.name == "avx512"), None)
    if level is None:
        pytest.skip("the amx level without its tiles needs AVX-512")
    source = Path(__file__).with_name("emulated_amx.c")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "emulated_amx.so"
        flags = (*FLAGS, *level.compiler_flags, "-O1", f"-I{SOURCES}")
        try:
            subprocess.run(["gcc", *flags, str(source), "-o", str(path), "-lm"], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(str(error))
        return KernelLibrary(path, level._replace(name=NAME))
