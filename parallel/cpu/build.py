"""From the kernel sources to one shared library per instruction-set level.

Only the standard library is imported here: `setup.py` runs this where nothing is installed yet.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

SOURCES = Path(__file__).parent / "kernels"
COMPILERS = ("gcc", "cc")
FLAGS = (
    *("-O3", "-std=c11", "-fPIC", "-shared", "-pthread", "-Wall", "-Wno-psabi", "-Wl,-z,defs"),
    # A product and a sum are contracted only where the source says so: every level and compiler rounds alike.
    *("-ffp-contract=off", "-fno-math-errno"),
)


class CompileFailed(Exception):
    """There is no compiler, or it refused; says which and why."""


class Level(NamedTuple):
    """An instruction set that the kernels are written for."""

    name: str
    compiler_flags: tuple[str, ...]
    cpu_flags: frozenset[str]
    """What /proc/cpuinfo lists on a machine that can run it."""


def _x86_levels() -> tuple[Level, ...]:
    avx2 = frozenset("avx avx2 bmi1 bmi2 f16c fma movbe abm".split())
    avx512 = avx2 | frozenset("avx512f avx512bw avx512cd avx512dq avx512vl avx512_vnni".split())
    bf16 = avx512 | {"avx512_bf16"}
    amx = bf16 | {"amx_tile", "amx_bf16", "amx_int8"}
    v4 = ("-march=x86-64-v4", "-mprefer-vector-width=512", "-mavx512vnni")
    return (
        Level("amx", (*v4, "-mavx512bf16", "-mamx-tile", "-mamx-bf16", "-mamx-int8"), amx),
        Level("avx512_bf16", (*v4, "-mavx512bf16"), bf16),
        Level("avx512", v4, avx512),
        Level("avx2", ("-march=x86-64-v3",), avx2),
        Level("portable", ("-march=x86-64",), frozenset()),
    )


LEVELS = _x86_levels() if platform.machine() in ("x86_64", "AMD64") else (Level("portable", (), frozenset()),)
"""Best first. On machines that are not x86 the compiler vectorises plain C as it can."""


def library_name(level: Level) -> str:
    """Return the file name of a level's library: another one whenever sources or flags are, so none is ever stale."""
    digest = hashlib.sha256(repr((platform.machine(), FLAGS, level.compiler_flags)).encode())
    for source in sorted(SOURCES.glob("*.[ch]")):
        digest.update(f"\0{source.name}\0".encode() + source.read_bytes())
    return f"eagle-{level.name}-{digest.hexdigest()[:16]}.so"


def compile_library(level: Level, folder: Path) -> Path:
    """Write the level's library into `folder` and return its path; takes seconds. Raises CompileFailed, OSError.

    The file appears whole or not at all, so several processes may do this at once.
    """
    compiler = next((path for path in map(shutil.which, COMPILERS) if path is not None), None)
    if compiler is None:
        raise CompileFailed(f"no C compiler ({' or '.join(COMPILERS)}) was found; install one, or a prebuilt wheel")
    target = folder / library_name(level)
    handle, unfinished = tempfile.mkstemp(dir=folder, prefix=f"{target.stem}-", suffix=".tmp")
    os.close(handle)
    command = [compiler, *FLAGS, *level.compiler_flags, str(SOURCES / "eagle.c"), "-o", unfinished, "-lm"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode != 0:
            raise CompileFailed(f"{compiler} could not build the {level.name} kernels: {_first_error(run.stderr)}")
        os.chmod(unfinished, 0o755)
        os.replace(unfinished, target)
    finally:
        Path(unfinished).unlink(missing_ok=True)
    return target


def _first_error(messages: str) -> str:
    lines = messages.strip().splitlines()
    # The linker says what is missing without calling it an error.
    telling = (line for line in lines if "error:" in line or "undefined reference" in line)
    return next(telling, lines[-1] if lines else "it said nothing")
