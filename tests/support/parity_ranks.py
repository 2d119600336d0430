"""Real ranks for comparing logits: one process each, over gloo. No transformers here, ranks start fast."""

import multiprocessing
from collections.abc import Mapping
from pathlib import Path

import torch

from parallel.groups.base import TPGroup
from parallel.groups.distributed import DistributedGroup
from parallel.groups.solo import SoloGroup
from parallel.groups.store import open_store
from tests.support.model_runner import CPU, ModelRunner, all_logits

HOST = "127.0.0.1"
TIMEOUT_S = 30.0


def logits_of_ranks(
    checkpoints: Mapping[str, Path], world_size: int, folder: Path
) -> dict[str, dict[int, torch.Tensor]]:
    """Return the logits of every checkpoint and row, the ranks' vocabularies joined."""
    store = open_store(HOST, 0, TIMEOUT_S)
    # Forked from one server that has imported torch once, instead of once a rank.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.parity_ranks"])
    ranks = [
        context.Process(target=_run_rank, args=(rank, world_size, store.port, checkpoints, folder))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    try:
        for process in ranks:
            process.join(TIMEOUT_S * 2)
            assert process.exitcode == 0, f"rank ended with {process.exitcode}"
    finally:
        for process in ranks:
            process.kill()
    parts = [torch.load(folder / f"{world_size}-{rank}.pt", weights_only=True) for rank in range(world_size)]
    return {
        name: {row: torch.cat([part[name][row] for part in parts], dim=-1) for row in parts[0][name]}
        for name in checkpoints
    }


def _run_rank(rank: int, world_size: int, port: int, checkpoints: Mapping[str, Path], folder: Path) -> None:
    torch.set_num_threads(1)
    group = _join(rank, world_size, port)
    logits = {name: all_logits(ModelRunner.load(path, group).step) for name, path in checkpoints.items()}
    torch.save(logits, folder / f"{world_size}-{rank}.pt")
    group.barrier()
    group.close()


def _join(rank: int, world_size: int, port: int) -> TPGroup:
    if world_size == 1:
        return SoloGroup()
    return DistributedGroup.join(
        rank=rank,
        world_size=world_size,
        host=HOST,
        store=open_store(HOST, port, TIMEOUT_S),
        device=CPU,
        timeout_s=TIMEOUT_S,
        generation=1,
    )
