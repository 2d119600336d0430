"""The life of a rank: find the leader, join the group, load, then one plan after another until told to leave."""

import contextlib
import gc
import os
import select
import threading
import traceback
from collections import deque

import torch

from core.errors import EaglerayError, ErrorInfo, OutOfMemory, ReplicaFailed
from core.frames import ConnectionLost
from core.progress import Progress
from parallel.groups.base import TPGroup
from parallel.groups.joining import join_group
from parallel.groups.solo import SoloGroup
from parallel.groups.store import open_store
from parallel.rank.channel import LeaderSocket, connect_to_leader
from parallel.rank.cpu_share import take_cpu
from parallel.rank.host import memory_of, node_name
from parallel.rank.loading import load_rank
from parallel.rank.messages import (
    CpuShare,
    Joined,
    Listening,
    Load,
    Plan,
    RankError,
    RankProgress,
    RankSpec,
    Rendezvous,
    Result,
    Shutdown,
    ToRank,
)
from parallel.rank.tiers import fastest_tier, why_no_fp8
from parallel.rank.worker import LaunchedStep

EXIT_FAILED = 1
EXIT_LEADER_GONE = 3

_LAST_WORDS_TIMEOUT_S = 0.5


class UnexpectedMessage(ReplicaFailed):
    """The leader said something out of turn: a bug."""


def run_rank(spec: RankSpec) -> int:
    """Be a rank until the leader ends it; return the exit code of its process.

    Ends the whole process at once, also in the middle of a collective, when the leader goes away.
    """
    # First, because threads inherit it from the thread that starts them.
    cpu = take_cpu(spec.num_threads)
    channel, host = connect_to_leader(spec.leader_host, spec.leader_port, spec.secret)
    watch = LeaderWatch(channel)
    try:
        _serve(spec, channel, host, cpu)
        return 0
    except ConnectionLost:
        return EXIT_LEADER_GONE
    except Exception as error:  # noqa: BLE001
        # The rank boundary: whatever happened, the leader hears of it once, and the process ends.
        with contextlib.suppress(ConnectionLost):
            channel.send(RankError(spec.rank, ErrorInfo.of(as_rank_error(error, spec.rank)), traceback.format_exc()))
        return EXIT_FAILED
    finally:
        watch.stop()
        channel.finish(_LAST_WORDS_TIMEOUT_S)


def as_rank_error(error: Exception, rank: int) -> EaglerayError:
    """Return `error` as the leader should see it: ours stay, lack of memory is named, all else is ReplicaFailed."""
    if isinstance(error, EaglerayError):
        return error
    summary = f"{type(error).__name__}: {error}"
    is_cpu_allocator = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or is_cpu_allocator:
        return OutOfMemory(f"rank {rank} ran out of memory; lower cache.memory or max_step_tokens ({summary})")
    return ReplicaFailed(f"rank {rank} failed: {summary}")


class LeaderWatch:
    """Ends this process when the leader's end of the channel closes, whatever the main thread is doing.

    A rank blocked in a collective or a kernel cannot read its socket; without this it would outlive its leader.
    """

    def __init__(self, channel: LeaderSocket) -> None:
        self._is_stopped = threading.Event()
        self._fileno = channel.fileno()
        threading.Thread(target=self._run, name="leader-watch", daemon=True).start()

    def stop(self) -> None:
        """Let the leader go without ending the process."""
        self._is_stopped.set()

    def _run(self) -> None:
        poll = select.poll()
        # Only the end of the connection wakes it, not the plans.
        poll.register(self._fileno, select.POLLRDHUP)
        poll.poll()
        if not self._is_stopped.is_set():
            os._exit(EXIT_LEADER_GONE)


def _serve(spec: RankSpec, channel: LeaderSocket, host: str, cpu: CpuShare) -> None:
    device = torch.device(spec.device)
    memory = memory_of(device)
    channel.send(
        Joined(
            rank=spec.rank,
            generation=spec.generation,
            pid=os.getpid(),
            host=host,
            node=node_name(),
            device=spec.device,
            total_memory_bytes=memory.total_bytes,
            free_memory_bytes=memory.free_bytes,
            tier=fastest_tier(device),
            fp8_obstacle=why_no_fp8(device),
            cpu=cpu,
        )
    )
    group = _join_group(spec, channel, host, device)
    try:
        channel.send(RankProgress(Progress(spec.rank, "connect", 1, 1)))
        message = channel.receive()
        if isinstance(message, Load):
            _obey(message, channel, group, device)
        elif not isinstance(message, Shutdown):
            raise _unexpected(message)
    finally:
        group.close()


def _join_group(spec: RankSpec, channel: LeaderSocket, host: str, device: torch.device) -> TPGroup:
    if spec.world_size == 1:
        return SoloGroup()
    message = channel.receive()
    if not isinstance(message, Rendezvous):
        raise _unexpected(message)
    store = open_store(message.host, message.port, spec.collective_timeout_s)
    if spec.rank == 0:
        channel.send(Listening(store.port))
    return join_group(
        rank=spec.rank,
        world_size=spec.world_size,
        host=host,
        node=node_name(),
        store=store,
        device=device,
        timeout_s=spec.collective_timeout_s,
        generation=spec.generation,
    )


def _obey(load: Load, channel: LeaderSocket, group: TPGroup, device: torch.device) -> None:
    """Load, then run plans until Shutdown."""
    worker, loaded = load_rank(load, group, device, lambda progress: channel.send(RankProgress(progress)))
    # What was made while loading lives as long as the process: no need for the collector to look at it again.
    gc.collect()
    gc.freeze()
    channel.send(loaded)
    launched: deque[LaunchedStep] = deque()
    while True:
        # The next step is launched while the device computes this one, if the leader has planned it already.
        if launched and (launched[0].is_done() or len(launched) > 1 or not channel.has_message()):
            result = worker.finish(launched.popleft())
            if group.rank == 0:
                channel.send(Result(result))
            continue
        message = channel.receive()
        if isinstance(message, Shutdown):
            return
        if not isinstance(message, Plan):
            raise _unexpected(message)
        launched.append(worker.launch(message.plan))


def _unexpected(message: ToRank) -> UnexpectedMessage:
    return UnexpectedMessage(f"the leader sent {type(message).__name__} out of turn")
