"""The life of a rank: find the leader, be enlisted, join the group, load, obey plans; when the group breaks, again.

Weights outlive the group. A rank whose peer died leaves the broken group at once and waits to be enlisted for the next
generation, where it needs to load nothing. An error of its own ends the process: another one takes its place.
"""

import contextlib
import gc
import os
import traceback
from collections import deque
from typing import NoReturn, TypeVar

import torch

from core.errors import EaglerayError, ErrorInfo, OutOfMemory, RankDied, ReplicaFailed
from core.frames import ConnectionLost
from core.progress import Progress
from parallel.checkpoint.source import Locate, locate_checkpoint
from parallel.groups.base import TPGroup
from parallel.groups.joining import join_group
from parallel.groups.solo import SoloGroup
from parallel.groups.store import open_store
from parallel.rank.channel import LeaderSocket, connect_to_leader
from parallel.rank.cpu_share import take_cpu
from parallel.rank.host import memory_of, node_name
from parallel.rank.loading import HeldWeights, load_rank
from parallel.rank.messages import (
    Arrived,
    Enlist,
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
from parallel.rank.pace import Pace
from parallel.rank.pulse import EXIT_LEADER_GONE, open_pulse
from parallel.rank.tiers import fastest_tier, why_no_fp8
from parallel.rank.worker import LaunchedStep, RankWorker

EXIT_FAILED = 1

_LAST_WORDS_TIMEOUT_S = 0.5

Wanted = TypeVar("Wanted", bound=ToRank)


class UnexpectedMessage(ReplicaFailed):
    """The leader said something out of turn: a bug."""


class Dismissed(Exception):
    """This generation is over: the leader has another use for this rank, or none."""

    def __init__(self, order: Enlist | Shutdown) -> None:
        super().__init__()
        self.order = order


def run_rank(spec: RankSpec, locate: Locate = locate_checkpoint) -> int:
    """Be a rank, of one generation after another, until the leader ends it; return the exit code of its process.

    `locate` finds the files of the model that the leader names, fetching them to this machine if need be.
    Ends the whole process at once, also in the middle of a collective, when the leader goes away.
    """
    # First, because threads inherit it from the thread that starts them.
    cpu = take_cpu(spec.num_threads)
    device = torch.device(spec.device)
    channel, host = connect_to_leader(spec.leader_host, spec.leader_port, spec.secret)
    channel.send(Arrived(spec.seat, os.getpid()))
    pulse = open_pulse(spec)
    rank = spec.seat
    try:
        memory = memory_of(device)
        member = Member(spec, channel, device, locate)
        order = channel.receive()
        while isinstance(order, Enlist):
            rank = order.rank
            joined = Joined(
                rank=order.rank,
                generation=order.generation,
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
            order = member.serve(joined)
        if not isinstance(order, Shutdown):
            raise _unexpected(order)
        return 0
    except ConnectionLost:
        return EXIT_LEADER_GONE
    except Exception as error:  # noqa: BLE001
        # The rank boundary: whatever happened, the leader hears of it once, and the process ends.
        with contextlib.suppress(ConnectionLost):
            channel.send(RankError(rank, ErrorInfo.of(as_rank_error(error, rank)), traceback.format_exc()))
        return EXIT_FAILED
    finally:
        pulse.stop()
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


class Member:
    """What a process keeps from one generation to the next: its connection, its device, and the weights it has read."""

    def __init__(self, spec: RankSpec, channel: LeaderSocket, device: torch.device, locate: Locate) -> None:
        self._spec = spec
        self._channel = channel
        self._device = device
        self._locate = locate
        self._weights: HeldWeights | None = None

    def serve(self, joined: Joined) -> Enlist | Shutdown:
        """Be a rank of one generation; return the order that ended it.

        Raises ConnectionLost when the leader is gone, and whatever this rank cannot live with.
        """
        self._channel.send(joined)
        try:
            self._serve(joined)
        except Dismissed as dismissed:
            return dismissed.order
        except RankDied as error:
            # A GPU's recorded steps and its collectives' threads do not outlive the group they were made for.
            if self._device.type != "cpu":
                raise
            complaint = RankError(joined.rank, ErrorInfo.of(error), traceback.format_exc())
        self._channel.send(complaint)
        return self._await_orders()

    def _serve(self, joined: Joined) -> NoReturn:
        group = self._join_group(joined)
        try:
            self._channel.send(RankProgress(Progress(joined.rank, "connect", 1, 1)))
            self._obey(self._load(group), group)
        finally:
            group.close()

    def _join_group(self, joined: Joined) -> TPGroup:
        spec = self._spec
        if spec.world_size == 1:
            return SoloGroup()
        meeting = self._next(Rendezvous)
        store = open_store(meeting.host, meeting.port, spec.collective_timeout_s)
        if joined.rank == 0:
            self._channel.send(Listening(store.port))
        return join_group(
            rank=joined.rank,
            world_size=spec.world_size,
            host=joined.host,
            node=joined.node,
            store=store,
            device=self._device,
            timeout_s=spec.collective_timeout_s,
            generation=joined.generation,
        )

    def _load(self, group: TPGroup) -> RankWorker:
        """Return a worker with this rank's weights, read unless they are here already, and an empty KV cache."""
        load = self._next(Load)
        held, self._weights = self._weights, None
        if held is not None and not held.fits(load, group):
            # Before others are read: there may be no room for both.
            held = None
        worker, loaded, self._weights = load_rank(
            load, group, self._device, lambda progress: self._channel.send(RankProgress(progress)), held, self._locate
        )
        # What was made while loading lives as long as the process: no need for the collector to look at it again.
        gc.collect()
        gc.freeze()
        self._channel.send(loaded)
        return worker

    def _obey(self, worker: RankWorker, group: TPGroup) -> NoReturn:
        """Run plans until dismissed."""
        launched: deque[LaunchedStep] = deque()
        pace = Pace(group.rank)
        while True:
            # The next step is launched while the device computes this one, if the leader has planned it already.
            if launched and (launched[0].is_done() or len(launched) > 1 or not self._channel.has_message()):
                result = worker.finish(launched.popleft())
                if group.rank == 0:
                    self._channel.send(Result(result))
                if (said := pace.record(result.rank_time_s)) is not None:
                    self._channel.send(said)
                continue
            launched.append(worker.launch(self._next(Plan).plan))

    def _next(self, kind: type[Wanted]) -> Wanted:
        """Return the leader's next message. Raises Dismissed."""
        message = self._channel.receive()
        if isinstance(message, Enlist | Shutdown):
            raise Dismissed(message)
        if not isinstance(message, kind):
            raise _unexpected(message)
        return message

    def _await_orders(self) -> Enlist | Shutdown:
        """Return what the leader wants instead of the generation that broke; its plans are void."""
        while True:
            message = self._channel.receive()
            if isinstance(message, Enlist | Shutdown):
                return message


def _unexpected(message: ToRank) -> UnexpectedMessage:
    return UnexpectedMessage(f"the leader sent {type(message).__name__} out of turn")
