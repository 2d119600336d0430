"""A results file: figures, and everything needed to judge or repeat them (machine, commit, versions, command)."""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("eagleray", "ray", "torch", "triton", "transformers", "starlette", "numpy", "aiohttp")


@dataclass(frozen=True)
class Machine:
    """Where a figure was measured."""

    cpu: str
    cores: int
    """Usable by this process."""
    memory_gib: float
    kernel: str
    python: str
    gpus: list[str]

    @classmethod
    def here(cls) -> "Machine":
        """Return this machine."""
        return cls(
            cpu=_cpu_model(),
            cores=len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1,
            memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
            kernel=f"{platform.system()} {platform.release().split('-')[0]}",
            python=platform.python_version(),
            gpus=_gpus(),
        )


def summary(values: Sequence[float], digits: int = 4) -> dict[str, float | int]:
    """Return count, mean, p50, p90, p99 (linear interpolation) and max; only the count when there is nothing."""
    if not values:
        return {"count": 0}
    array = np.asarray(values, dtype=np.float64)
    p50, p90, p99 = (round(float(value), digits) for value in np.percentile(array, [50, 90, 99]))
    mean, largest = round(float(array.mean()), digits), round(float(array.max()), digits)
    return {"count": len(values), "mean": mean, "p50": p50, "p90": p90, "p99": p99, "max": largest}


def write_report(name: str, started_at: datetime, figures: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write `<date>-<name>.json` with the figures and their origin; return its path. Replaces a file of that name."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{started_at:%Y-%m-%d}-{name}.json"
    report = {"name": name, **origin(started_at), **figures}
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return path


def origin(started_at: datetime) -> dict[str, Any]:
    """Return what a results file begins with: time, commit, command, machine, versions."""
    return {
        "started_at": started_at.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - started_at).total_seconds(), 1),
        "commit": _commit(),
        "command": _command(),
        "machine": vars(Machine.here()),
        "versions": _versions(),
    }


def shown(path: Path) -> str:
    """Return the path relative to the repository, if it is inside."""
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)


def _command() -> str:
    program = Path(sys.argv[0])
    if program.is_relative_to(ROOT):
        module = program.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        return shlex.join(["python", "-m", module, *sys.argv[1:]])
    return shlex.join([program.name, *sys.argv[1:]])


def _commit() -> str:
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--", ":!benchmarks/results"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("-dirty" if changes.strip() else "")


def _versions() -> dict[str, str]:
    installed: dict[str, str] = {}
    for package in PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _gpus() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()] if answer.returncode == 0 else []
