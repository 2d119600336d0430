"""How much memory a rank may think it has."""

from pathlib import Path

import psutil
import pytest
import torch

from parallel.rank.host import memory_of, node_name

CPU = torch.device("cpu")
MIB = 2**20


def write_cgroup(folder: Path, limit: str, used: int, inactive_file: int) -> Path:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {inactive_file}\n")
    return folder


def test_a_containers_limit_counts_as_the_machines_memory(tmp_path: Path):
    memory = memory_of(CPU, write_cgroup(tmp_path, str(64 * MIB), 40 * MIB, 10 * MIB))
    assert (memory.total_bytes, memory.free_bytes) == (64 * MIB, 34 * MIB)


@pytest.mark.parametrize("limit", ["max", None])
def test_without_a_limit_the_machine_counts(tmp_path: Path, limit: str | None):
    if limit is not None:
        write_cgroup(tmp_path, limit, 1, 1)
    memory = memory_of(CPU, tmp_path)
    assert memory.total_bytes == psutil.virtual_memory().total
    assert 0 < memory.free_bytes <= memory.total_bytes


def test_processes_of_one_machine_name_it_alike():
    assert node_name() == node_name() != "/"
