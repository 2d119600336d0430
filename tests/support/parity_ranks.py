"""Logits of real ranks. No transformers here, so that ranks start fast."""

from collections.abc import Mapping
from pathlib import Path

import torch

from parallel.groups.base import TPGroup
from tests.support.model_runner import ModelRunner, all_logits
from tests.support.rank_processes import run_rank_processes


def logits_of_ranks(
    checkpoints: Mapping[str, Path], world_size: int, folder: Path
) -> dict[str, dict[int, torch.Tensor]]:
    """Return the logits of every checkpoint and row, the ranks' vocabularies joined; `folder` is for passing them."""
    files = run_rank_processes(world_size, _save_logits, checkpoints, folder)
    parts = [torch.load(file, weights_only=True) for file in files]
    return {
        name: {row: torch.cat([part[name][row] for part in parts], dim=-1) for row in parts[0][name]}
        for name in checkpoints
    }


def _save_logits(group: TPGroup, checkpoints: Mapping[str, Path], folder: Path) -> Path:
    logits = {name: all_logits(ModelRunner.load(path, group).step) for name, path in checkpoints.items()}
    file = folder / f"rank-{group.rank}.pt"
    torch.save(logits, file)
    group.barrier()
    return file
