"""The share of its machine that a rank's process computes with, and whether it is what was asked for."""

import logging

import torch

from core.cores import take_normal_priority, usable_cores
from parallel.rank.messages import CpuShare

logger = logging.getLogger(__name__)


def take_cpu(num_threads: int) -> CpuShare:
    """Compute with `num_threads` at normal priority from now on; return what that came to.

    Whatever is less than asked for is logged, with what to do.
    """
    # Ray starts its workers with OMP_NUM_THREADS=1; this overrides it.
    torch.set_num_threads(num_threads)
    share = CpuShare(torch.get_num_threads(), usable_cores(), take_normal_priority())
    for reason in shortfalls(num_threads, share):
        logger.warning("rank has less of the machine than it should", extra={"reason": reason})
    return share


def shortfalls(num_threads: int, share: CpuShare) -> list[str]:
    """Return in what the share is less than `num_threads` at normal priority, and what to do about it."""
    found = []
    if share.num_threads < num_threads:
        found.append(f"{share.num_threads} of {num_threads} threads compute; unset OMP_THREAD_LIMIT")
    if share.num_cores < num_threads:
        found.append(
            f"{num_threads} threads share {share.num_cores} of the cores, by affinity or CPU quota; "
            "lower parallel.threads_per_rank, or allow the process more cores"
        )
    if share.niceness > 0:
        found.append(
            f"niceness is {share.niceness}, so everything else on the machine comes first; "
            "start Ray with RAY_worker_niceness=0, or allow CAP_SYS_NICE"
        )
    return found
