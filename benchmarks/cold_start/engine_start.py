"""`python -m engine.generate` from the start of the process to the first token, watched from outside."""

import contextlib
import subprocess
import sys
import threading
import time
from typing import IO

import psutil

from benchmarks.cold_start.timeline import Timeline
from benchmarks.report import ROOT

PROMPT = "What is the capital of France?"
TIMEOUT_S = 300.0

_PHASES = {
    "connect": "rank has imported torch and joined",
    "load": "rank is told what to load",
    "warmup": "weights are read and packed",
    "ready": "first step ran",
}
"""What the command's progress lines mean, by the phase they name."""
_POLL_S = 0.01


def start_engine_once(model: str) -> dict[str, float]:
    """Return the timeline of one start. Raises SystemExit if the command fails."""
    timeline = Timeline()
    process = subprocess.Popen(
        [sys.executable, "-m", "engine.generate", "--model", model, "--max-tokens", "1", PROMPT],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )
    assert process.stdout is not None and process.stderr is not None
    watchers = [
        threading.Thread(target=_await_rank, args=(process, timeline)),
        threading.Thread(target=_follow_progress, args=(process.stderr, timeline)),
        threading.Thread(target=_await_text, args=(process.stdout, timeline)),
    ]
    for watcher in watchers:
        watcher.start()
    if process.wait(TIMEOUT_S) != 0:
        raise SystemExit(f"engine.generate ended with exit code {process.returncode}")
    for watcher in watchers:
        watcher.join()
    return timeline.seconds


def _await_rank(process: subprocess.Popen[bytes], timeline: Timeline) -> None:
    """Note when the leader has imported everything, looked at the checkpoint and started its rank."""
    with contextlib.suppress(psutil.NoSuchProcess):
        while process.poll() is None and not psutil.Process(process.pid).children():
            time.sleep(_POLL_S)
        timeline.note("leader has looked at the model and started its rank")


def _follow_progress(output: IO[bytes], timeline: Timeline) -> None:
    for line in output:
        words = line.decode().split()
        if words[:1] == ["rank"]:
            timeline.note(_PHASES[words[2]])


def _await_text(output: IO[bytes], timeline: Timeline) -> None:
    if output.read(1):
        timeline.note("first token is printed")
    output.read()
