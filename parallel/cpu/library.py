"""The kernel library of this machine: found beside the package, or compiled once into the user's cache."""

import ctypes
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import StartupError
from parallel.cpu.abi import ABI_VERSION, FUNCTIONS
from parallel.cpu.build import LEVELS, CompileFailed, Level, compile_library, library_name

logger = logging.getLogger(__name__)

PREBUILT = Path(__file__).parent / "lib"
"""Where a wheel that was built with a compiler keeps its libraries."""
_CPU_INFO = Path("/proc/cpuinfo")


class KernelsUnavailable(StartupError):
    """This machine cannot have the CPU kernels; the message says why. Plain torch can do the same work."""


class KernelLibrary:
    """A loaded library. Its calls release the GIL."""

    def __init__(self, path: Path, level: Level) -> None:
        """Load the file. Raises KernelsUnavailable if it cannot be, fits another eagle.h, or may not be run here."""
        try:
            self.calls = ctypes.CDLL(str(path))
        except OSError as error:
            raise KernelsUnavailable(f"{path} cannot be loaded: {error}") from None
        self.path = path
        self.level = level.name
        version = self.calls.eg_abi_version()
        if version != ABI_VERSION:
            raise KernelsUnavailable(f"{path} has ABI version {version}; {ABI_VERSION} is needed: delete the file")
        _declare(self.calls)
        error = self.calls.eg_enable()
        if error != 0:
            raise KernelsUnavailable(f"{level.name} instructions are not allowed here: {os.strerror(error)}")

    @classmethod
    def load(cls, level: str | None = None) -> "KernelLibrary":
        """Return the library of the named level, or of the best one that this CPU runs and that can be had.

        May compile for some seconds, once per machine and version. Raises KernelsUnavailable.
        """
        runnable = [known for known in runnable_levels() if level in (None, known.name)]
        if not runnable:
            names = ", ".join(known.name for known in runnable_levels())
            raise KernelsUnavailable(f"kernel level {level!r} does not run on this CPU; use one of {names}")
        reasons: list[str] = []
        for known in runnable:
            try:
                return cls(_locate(known), known)
            except (CompileFailed, KernelsUnavailable) as error:
                logger.warning("kernel level skipped", extra={"level": known.name, "reason": str(error)})
                reasons.append(str(error))
        raise KernelsUnavailable(reasons[0])


def runnable_levels() -> list[Level]:
    """Return the levels that this CPU has the instructions for, best first."""
    flags = cpu_flags(_CPU_INFO.read_text() if _CPU_INFO.exists() else "")
    return [level for level in LEVELS if level.cpu_flags <= flags]


def cpu_flags(cpu_info: str) -> frozenset[str]:
    """Return the flags that every processor of a /proc/cpuinfo has."""
    lines = [line.partition(":")[2].split() for line in cpu_info.splitlines() if line.startswith("flags")]
    return frozenset.intersection(*map(frozenset, lines)) if lines else frozenset()


def cache_folder() -> Path:
    """Return where compiled libraries are kept. Raises KernelsUnavailable if this user has no home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "eagleray" / "kernels"
    except RuntimeError as error:
        raise KernelsUnavailable(f"no folder to compile kernels into: {error}; set XDG_CACHE_HOME") from None


def _locate(level: Level) -> Path:
    prebuilt = PREBUILT / library_name(level)
    return prebuilt if prebuilt.exists() else _compiled(level, cache_folder())


def _compiled(level: Level, folder: Path) -> Path:
    path = folder / library_name(level)
    try:
        with _alone_in(folder):
            return path if path.exists() else compile_library(level, folder)
    except OSError as error:
        raise KernelsUnavailable(
            f"{folder}: kernels cannot be compiled there ({error.strerror}); set XDG_CACHE_HOME"
        ) from None


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Let one process of this machine compile at a time: the ranks of a group start together."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _declare(calls: ctypes.CDLL) -> None:
    for name, (result, arguments) in FUNCTIONS.items():
        function = calls[name]
        function.restype, function.argtypes = result, arguments
        setattr(calls, name, function)  # `calls[name]` would make an undeclared one each time
