"""Seconds from a clean clone to the first answer, and the memory of everything that runs then.

    python -m benchmarks.first_answer

Clones the last commit into a temporary folder, types `make serve` there and asks one question. Packages come from the
package manager's cache if it has them, which is what the second person on a machine sees. Needs port 8000.
"""

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import psutil

from benchmarks.report import ROOT, shown, write_report
from benchmarks.serve_process import role_of

URL = "http://127.0.0.1:8000"
QUESTION = "What is the capital of France?"
READY_TIMEOUT_S = 1200.0
STOP_TIMEOUT_S = 60.0


def main() -> None:
    """Measure once and write the results file."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--save", action="store_true", help="write benchmarks/results/<date>-first-answer.json")
    arguments = cli.parse_args()
    started_at = datetime.now(UTC)
    with tempfile.TemporaryDirectory(prefix="eagleray-clone-") as folder:
        figures = measure(Path(folder, "eagleray"))
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    if arguments.save:
        sys.stdout.write(f"{shown(write_report('first-answer', started_at, figures))}\n")


def measure(clone: Path) -> dict[str, object]:
    """Return the seconds of each stage, the answer and the memory. Raises SystemExit if the server does not start."""
    started_s = time.monotonic()
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    subprocess.run(["make", "--silent", "setup"], cwd=clone, check=True, stdout=subprocess.DEVNULL)
    installed_s = time.monotonic()
    server = subprocess.Popen(["make", "serve"], cwd=clone, stdin=subprocess.DEVNULL, process_group=0)
    try:
        _wait_until_ready(server)
        ready_s = time.monotonic()
        answer = ask()
        answered_s = time.monotonic()
        memory = memory_mib(psutil.Process(server.pid))
    finally:
        _stop(server)
    return {
        "installed_s": round(installed_s - started_s, 1),
        "ready_after_install_s": round(ready_s - installed_s, 1),
        "answer_s": round(answered_s - ready_s, 2),
        "clone_to_answer_s": round(answered_s - started_s, 1),
        "answer": answer,
        "pss_mib": memory,
        "pss_total_mib": round(sum(memory.values())),
    }


def ask() -> str:
    """Return the model's answer to QUESTION."""
    body = {"model": "smollm2-135m", "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    request = urllib.request.Request(
        f"{URL}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)["choices"][0]["message"]["content"]


def memory_mib(root: psutil.Process) -> dict[str, float]:
    """Return the proportional set size by role, MiB: shared pages are counted once over all processes."""
    sizes: dict[str, float] = {}
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            pss = process.memory_full_info().pss / 2**20
            role = role_of(process)
            sizes[role] = round(sizes.get(role, 0.0) + pss, 1)
    return sizes


def _wait_until_ready(server: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline_s and server.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{URL}/readyz", timeout=10):
            return
        time.sleep(0.1)
    raise SystemExit(f"{URL} did not get ready within {READY_TIMEOUT_S:g} s")


def _stop(server: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(server.pid).children(recursive=True)
        # make passes it on.
        server.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(family, timeout=STOP_TIMEOUT_S)
        for process in alive:
            process.kill()
    server.wait()


if __name__ == "__main__":
    main()
