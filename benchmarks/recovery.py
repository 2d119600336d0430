"""Kills a rank under open streams, again and again: how soon every client knows, and how soon the group serves again.

    python -m benchmarks.recovery --kills 5

One group of two ranks (configs/tp2-two-replicas.yaml with one replica), so that there is no other group to help.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.report import ROOT, shown, summary, write_report
from benchmarks.serve_process import Served, role_of, served
from core.config import read_yaml

CONFIG = ROOT / "configs" / "tp2-two-replicas.yaml"
MODEL = "smollm2-135m"
NUM_STREAMS = 8
RECOVERY_TIMEOUT_S = 120.0


class Stream:
    """One streamed answer, read by a thread of its own until the server ends it."""

    def __init__(self, url: str) -> None:
        self.has_begun = threading.Event()
        self.error_at_s: float | None = None
        """When the error event came; stays None if the stream was cut without one."""
        self._url = url
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait for the end of the stream."""
        self._thread.join(RECOVERY_TIMEOUT_S)

    def _read(self) -> None:
        with urllib.request.urlopen(chat(self._url, max_tokens=1500, is_streamed=True), timeout=60) as response:
            for line in response:
                if line.startswith(b'data: {"error"'):
                    self.error_at_s = time.monotonic()
                elif b'"content"' in line:
                    self.has_begun.set()


def main() -> None:
    """Measure, print, and write the results file if asked."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--kills", type=int, default=5, help="how many ranks to kill, one after another (5)")
    cli.add_argument("--save", action="store_true", help="write benchmarks/results/<date>-recovery.json")
    arguments = cli.parse_args()
    started_at = datetime.now(UTC)
    with (
        tempfile.TemporaryDirectory(prefix="eagleray-recovery-") as folder,
        served(one_group(Path(folder)), {}, is_direct=False) as server,
    ):
        kills = [kill_a_rank(server) for _ in range(arguments.kills)]
    figures = {
        "workload": {"streams": NUM_STREAMS, "ranks": 2, "kills": arguments.kills},
        "cut_streams": sum(kill["cut_streams"] for kill in kills),
        "kill_to_last_error_event_s": summary([kill["last_error_s"] for kill in kills]),
        "kill_to_serving_again_s": summary([kill["serving_again_s"] for kill in kills]),
        "kills": kills,
    }
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    if arguments.save:
        sys.stdout.write(f"{shown(write_report('recovery', started_at, figures))}\n")


def one_group(folder: Path) -> Path:
    """Write CONFIG with a single replica; return its path."""
    settings = read_yaml(CONFIG)
    for application in settings["applications"]:
        for deployment in application["deployments"]:
            deployment["num_replicas"] = 1
    path = folder / CONFIG.name
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def kill_a_rank(server: Served) -> dict[str, Any]:
    """Kill the last rank under open streams; return what clients saw, seconds from the kill."""
    streams = [Stream(server.url) for _ in range(NUM_STREAMS)]
    for stream in streams:
        if not stream.has_begun.wait(60):
            raise SystemExit("a stream did not begin within 60 s")
    ranks = [process for process in server.root.children(recursive=True) if role_of(process) == "rank"]
    victim = max(ranks, key=psutil.Process.create_time)
    killed_s = time.monotonic()
    os.kill(victim.pid, signal.SIGKILL)
    for stream in streams:
        stream.join()
    ended_s = [stream.error_at_s for stream in streams if stream.error_at_s is not None]
    _wait_for_an_answer(server.url)
    return {
        "cut_streams": NUM_STREAMS - len(ended_s),
        "last_error_s": round(max(ended_s, default=float("inf")) - killed_s, 4),
        "serving_again_s": round(time.monotonic() - killed_s, 3),
    }


def chat(url: str, max_tokens: int, is_streamed: bool) -> urllib.request.Request:
    """Return a request for a story of exactly `max_tokens`."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Tell me a very long story."}],
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "stream": is_streamed,
    }
    return urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )


def _wait_for_an_answer(url: str) -> None:
    deadline_s = time.monotonic() + RECOVERY_TIMEOUT_S
    while time.monotonic() < deadline_s:
        try:
            with urllib.request.urlopen(chat(url, max_tokens=1, is_streamed=False), timeout=60) as response:
                response.read()
                return
        except urllib.error.HTTPError as refusal:
            refusal.close()
        time.sleep(0.05)
    raise SystemExit(f"the group did not serve again within {RECOVERY_TIMEOUT_S:g} s")


if __name__ == "__main__":
    main()
