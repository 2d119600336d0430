"""Small benchmarks run from their command lines: red if what they measure has moved away from under them."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

ROOT = Path(__file__).parents[2]
COMMANDS = [
    "gateway_path --streams 4 --tokens 24 --step-ms 5 --rounds 1",
    "host_path --rows 4 --steps 50 --step-ms 1",
    "live_page",
    "rank_channel --ranks 1 --steps 20 --rounds 1",
    "rank_host --rows 4 --vocabulary 1000 --steps 20",
    "routing.decision --keys 2000 --decisions 50",
    "token_channel --streams 4 --tokens 16 --step-ms 2 --rounds 1",
    "tracing_cost --tokens 4 --requests 20 --rounds 1",
    "weights_fetch --mib 4 --streams 2 --rounds 1",
]


def written_at():
    return {path.name: path.stat().st_mtime_ns for path in (ROOT / "benchmarks/results").iterdir()}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split()[0])
def test_a_benchmark_prints_figures_and_writes_nothing_unasked(command):
    before = written_at()
    run = subprocess.run(
        [sys.executable, "-m", *f"benchmarks.{command}".split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert any(character.isdigit() for character in run.stdout)
    assert written_at() == before
