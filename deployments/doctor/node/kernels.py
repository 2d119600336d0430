"""Which instruction set this CPU has, and whether its kernels are there, can be compiled, or neither."""

import contextlib
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deployments.doctor.finding import Finding, note, ok, problem, warning
from deployments.doctor.inside import ask_python
from parallel.cpu.build import COMPILERS, LEVELS, library_name
from parallel.cpu.library import PREBUILT, KernelsUnavailable, cache_folder, runnable_levels

_LOAD_TIMEOUT_S = 60.0
_LOAD = (
    "import sys; from pathlib import Path; from parallel.cpu.build import LEVELS\n"
    "from parallel.cpu.library import KernelLibrary\n"
    "level = next(level for level in LEVELS if level.name == sys.argv[2])\n"
    "KernelLibrary(Path(sys.argv[1]), level)"
)
"""Loads a library, as a rank would, where a wrong instruction kills nobody."""


@dataclass(frozen=True)
class LevelFacts:
    """One instruction-set level that this CPU can run."""

    name: str
    library: str | None
    """Path of the compiled library; None: there is none yet."""
    load_error: str
    """Why the library that is there cannot be used."""


@dataclass(frozen=True)
class KernelFacts:
    """What the CPU kernels need."""

    machine: str
    """As `uname -m` says."""
    levels: tuple[LevelFacts, ...]
    """Best first."""
    compiler: str | None
    cache_obstacle: str
    """Why nothing can be compiled into the user's cache; empty if it can."""


def gather() -> KernelFacts:
    """Return what is there; loads the best library that exists, compiles nothing."""
    levels: list[LevelFacts] = []
    for level in runnable_levels():
        path = _existing(library_name(level))
        is_asked = path is not None and not any(found.library and not found.load_error for found in levels)
        error = ask_python(_LOAD, (str(path), level.name), _LOAD_TIMEOUT_S).error if is_asked else ""
        levels.append(LevelFacts(level.name, str(path) if path else None, error))
    compiler = next((path for path in map(shutil.which, COMPILERS) if path is not None), None)
    return KernelFacts(platform.machine(), tuple(levels), compiler, _cache_obstacle())


def check(facts: KernelFacts) -> Iterator[Finding]:
    """Yield the CPU's level, and which tier a rank on the CPU would compute with."""
    best = facts.levels[0].name
    if best == "portable" and len(LEVELS) > 1:
        yield warning(
            "node.cpu", f"{facts.machine} without AVX2: only portable kernels run", "use a CPU from 2015 or later"
        )
    elif best == "portable":
        yield note("node.cpu", f"{facts.machine}: kernels are plain C, vectorised as the compiler can")
    else:
        yield ok("node.cpu", f"{facts.machine} with {best} instructions")
    yield _tier(facts, best)


def _tier(facts: KernelFacts, best: str) -> Finding:
    for level in facts.levels:
        slower = f", not {best}" if level.name != best else ""
        if level.load_error:
            return problem(
                "node.kernels",
                f"the {level.name} kernels in {level.library} cannot be used: {level.load_error}",
                "delete the file; a new one is compiled at the next start",
            )
        if level.library:
            found = f"{level.name} kernels{slower}: {level.library}"
            return warning("node.kernels", found, _HOW_TO_COMPILE) if slower else ok("node.kernels", found)
        if facts.compiler and not facts.cache_obstacle:
            return note(
                "node.kernels", f"{level.name} kernels are compiled at the first start, in seconds, by {facts.compiler}"
            )
    why = facts.cache_obstacle if facts.compiler else f"no C compiler ({' or '.join(COMPILERS)})"
    return warning("node.kernels", f"no compiled kernels: plain torch computes on the CPU ({why})", _HOW_TO_COMPILE)


_HOW_TO_COMPILE = "install gcc, or a wheel that was built where a compiler is; XDG_CACHE_HOME moves the cache"


def _existing(name: str) -> Path | None:
    folders = [PREBUILT]
    with contextlib.suppress(KernelsUnavailable):  # said by _cache_obstacle
        folders.append(cache_folder())
    return next((folder / name for folder in folders if (folder / name).exists()), None)


def _cache_obstacle() -> str:
    try:
        folder = cache_folder()
    except KernelsUnavailable as error:
        return error.message
    while not folder.exists():
        folder = folder.parent
    return "" if os.access(folder, os.W_OK) else f"{folder} cannot be written"
