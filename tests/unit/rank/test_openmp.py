"""Threads of a rank that wait for each other go to sleep soon, unless somebody outside decided otherwise."""

import os
import subprocess
import sys

SET_UP = "import os, sys; from parallel.rank.openmp import prepare_openmp; prepare_openmp(2); "
SHOW = "print(os.environ['OMP_NUM_THREADS'], os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"


def run(**environment):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-c", SET_UP + SHOW]
    return subprocess.run(command, env=inherited | environment, capture_output=True, text=True, check=True).stdout


def test_openmp_is_prepared_before_torch_can_read_it():
    assert run(OMP_NUM_THREADS="1").split() == ["2", "1000", "False"]


def test_a_spin_count_from_outside_is_respected():
    assert run(GOMP_SPINCOUNT="7").split()[1] == "7"
