"""A served model from the start of the command to the first generated token, watched from outside."""

import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

import msgspec
import psutil

from benchmarks.cold_start.timeline import Timeline
from benchmarks.serve_process import Served, started
from deployments.gateway.readiness import ReadinessReport

TIMEOUT_S = 180.0

_PROCESSES = {
    "gcs_server": "Ray starts",
    "raylet": "Ray's node starts",
    "ray::ServeController": "Serve's controller runs",
    "ray::RankActor": "rank's process runs",
}
"""What it means that there is a process with this in its command line."""
_PHASES = {
    "connect": "rank has imported torch and joined",
    "load": "rank is told what to load",
    "warmup": "weights are read and packed",
    "ready": "first step ran",
}
_POLL_S = 0.05
_POLLS_A_LOOK = 4
"""Looking at thirty processes takes milliseconds of the time that is measured."""


class ServeStart(NamedTuple):
    """One start."""

    seconds: dict[str, float]
    cpu_s: dict[str, float]
    """CPU time of every process that lives when the model is ready, by what it is."""


def start_serving_once(config: Path) -> ServeStart:
    """Return one start. Raises SystemExit if the server does not get ready."""
    timeline = Timeline()
    with started(config, {}, is_direct=False) as server:
        root = psutil.Process(server.process.pid)
        num_polls = 0
        while server.process.poll() is None and not timeline.is_past(TIMEOUT_S):
            if num_polls % _POLLS_A_LOOK == 0:
                _look_at_processes(root, timeline)
            if _ask(server.url, timeline):
                return ServeStart(timeline.seconds, Served(server.url, root).cpu_seconds())
            num_polls += 1
            time.sleep(_POLL_S)
        raise SystemExit(f"{config} did not get ready; the server's last words:\n{server.last_words()}")


def _look_at_processes(root: psutil.Process, timeline: Timeline) -> None:
    missing = {sign: event for sign, event in _PROCESSES.items() if not timeline.has(event)}
    if not missing:
        return
    for process in root.children(recursive=True):
        try:
            command = " ".join(process.cmdline())
        except psutil.Error:
            continue
        for sign, event in missing.items():
            if sign in command:
                timeline.note(event)


def _ask(url: str, timeline: Timeline) -> bool:
    """Note what `/readyz` tells; return whether a model has just generated a token."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=10) as answer:
            body = answer.read()
    except urllib.error.HTTPError as error:
        body = error.read()
    except OSError:
        return False
    timeline.note("Serve's proxy answers")
    try:
        report = msgspec.json.decode(body, type=ReadinessReport)
    except msgspec.DecodeError:
        return False  # the proxy alone answered
    timeline.note("gateway answers")
    for group in (group for model in report.models for group in model.groups):
        timeline.note("leader has announced itself")
        for progress in group.progress:
            timeline.note(_PHASES[progress.phase])
    if report.is_ready:
        timeline.note("model has generated a token")
    return report.is_ready
