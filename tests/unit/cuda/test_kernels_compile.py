"""Every kernel compiles for a Hopper GPU, without one, and keeps what it works on in registers."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
KERNELS = set(
    "_add_parts _choose _dequantise _draw _draw_filtered _extend _join_chunks _join_parts _look_up _look_up_quantised"
    " _multiply _norm _quantise_rows _read_chunk _read_part _rotate _silu_mul _uniforms".split()
)


def test_every_kernel_compiles_without_spilling_registers(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    printed = subprocess.run(
        [sys.executable, "-m", "tests.support.compile_kernels", "tiny"],
        cwd=ROOT,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert printed.returncode == 0, printed.stderr[-4000:]
    rows = [line.split() for line in printed.stdout.splitlines()]
    assert {name for name, *_ in rows} == KERNELS
    assert not [name for name, _, stack, _ in rows if int(stack)]
    # 227 KiB a block is what a Hopper multiprocessor gives.
    assert max(int(shared) for *_, shared in rows) <= 227 * 1024
