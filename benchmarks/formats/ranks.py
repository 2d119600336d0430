"""A text's logits from one rank or several, each a process as in serving."""

import multiprocessing
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.formats.settings import Setting
from benchmarks.formats.teacher_forced import text_logits
from parallel.groups.base import TPGroup
from parallel.groups.joining import join_group
from parallel.groups.solo import SoloGroup
from parallel.groups.store import open_store

HOST = "127.0.0.1"
TIMEOUT_S = 60.0


class Measured(NamedTuple):
    """One setting, all ranks together."""

    setting: Setting
    logits: Tensor
    """TV: a row a token, over the whole vocabulary."""
    weight_bytes: int
    kv_bytes_per_token: int
    tier: str


def measure(source: str, settings: Sequence[Setting], world_size: int, token_ids: Sequence[int]) -> Iterator[Measured]:
    """Yield what the ranks compute in each setting; they are ended when all are done, or at the first that fails."""
    store = open_store(HOST, 0, TIMEOUT_S)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        job = _Job(source, tuple(settings), world_size, tuple(token_ids), store.port, Path(folder))
        ranks = [context.Process(target=_run_rank, args=(job, rank)) for rank in range(world_size)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
            if process.exitcode != 0:
                raise SystemExit(f"a rank of {world_size} ended with {process.exitcode}")
        for index, setting in enumerate(settings):
            parts = [torch.load(job.file(rank, index), weights_only=True) for rank in range(world_size)]
            logits_TV = torch.cat([part["logits"] for part in parts], dim=-1)
            weight_bytes, kv_bytes = (sum(part[name] for part in parts) for name in ("weight_bytes", "kv_bytes"))
            yield Measured(setting, logits_TV, weight_bytes, kv_bytes, parts[0]["tier"])


class _Job(NamedTuple):
    source: str
    settings: tuple[Setting, ...]
    world_size: int
    token_ids: tuple[int, ...]
    port: int
    folder: Path

    def file(self, rank: int, index: int) -> Path:
        return self.folder / f"{index}-{rank}.pt"


def _run_rank(job: _Job, rank: int) -> None:
    torch.set_num_threads(1)
    group = SoloGroup() if job.world_size == 1 else _join(job, rank)
    for index, setting in enumerate(job.settings):
        found = text_logits(job.source, setting, group, job.token_ids)
        part = {
            "logits": found.logits,
            "weight_bytes": found.weight_bytes,
            "kv_bytes": found.kv_bytes_per_token,
            "tier": found.tier,
        }
        torch.save(part, job.file(rank, index))
    group.barrier()
    group.close()


def _join(job: _Job, rank: int) -> TPGroup:
    return join_group(
        rank=rank,
        world_size=job.world_size,
        host=HOST,
        node="this machine",
        store=open_store(HOST, job.port, TIMEOUT_S),
        device=torch.device("cpu"),
        timeout_s=TIMEOUT_S,
        generation=0,
    )
