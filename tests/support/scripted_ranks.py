"""A RankLauncher whose ranks are threads that follow a script, for testing the leader's end of the rank channel."""

import socket
import threading
from collections.abc import Callable, Sequence

from core.frames import ConnectionLost
from core.progress import Progress
from parallel.plan import RowToken, SampledTokens, StepResult
from parallel.rank.channel import LeaderSocket, connect_to_leader
from parallel.rank.messages import (
    Joined,
    Listening,
    Load,
    Loaded,
    Plan,
    RankProgress,
    RankSpec,
    Rendezvous,
    Result,
)

Script = Callable[[RankSpec, LeaderSocket], None]


def join(spec: RankSpec, channel: LeaderSocket, generation: int | None = None) -> None:
    """Say Joined."""
    channel.send(
        Joined(
            rank=spec.rank,
            generation=spec.generation if generation is None else generation,
            pid=spec.rank,
            host="127.0.0.1",
            node="node",
            device=spec.device,
            total_memory_bytes=2,
            free_memory_bytes=1,
        )
    )


def form_group(spec: RankSpec, channel: LeaderSocket) -> None:
    """Do what a rank does until `SocketRankPool.join` returns."""
    join(spec, channel)
    if spec.world_size > 1:
        message = channel.receive()
        assert isinstance(message, Rendezvous)
        if spec.rank == 0:
            channel.send(Listening(4711))
        else:
            assert message.port == 4711
    channel.send(RankProgress(Progress(spec.rank, "connect", 1, 1)))


def get_ready(spec: RankSpec, channel: LeaderSocket) -> None:
    """Do what a rank does until `SocketRankPool.load` returns."""
    form_group(spec, channel)
    if not isinstance(channel.receive(), Load):
        raise ConnectionLost("the leader wants no model")
    channel.send(RankProgress(Progress(spec.rank, "load", 1, 2)))
    channel.send(Loaded(spec.rank, 1, 1, 0.0))


def answer_plans(spec: RankSpec, channel: LeaderSocket) -> None:
    """Answer every plan with token 7 of row 0, until something else comes."""
    while isinstance(message := channel.receive(), Plan):
        if spec.rank == 0:
            channel.send(Result(StepResult(message.plan.step, SampledTokens.of([RowToken(0, 7)]), 0.0)))


def well_behaved(spec: RankSpec, channel: LeaderSocket) -> None:
    """Do everything right."""
    get_ready(spec, channel)
    answer_plans(spec, channel)


class ScriptedLauncher:
    """Runs `scripts[rank]`, or `well_behaved`, in a thread; the connection breaks when the script returns."""

    def __init__(self, scripts: dict[int, Script] | None = None) -> None:
        self.specs: list[RankSpec] = []
        self.exits: dict[int, str] = {}
        self.num_stops = 0
        self._scripts = scripts or {}
        self._threads: list[threading.Thread] = []
        self._channels: list[LeaderSocket] = []

    def launch(self, specs: Sequence[RankSpec]) -> None:
        """Start one thread per spec."""
        self.specs = list(specs)
        for spec in specs:
            thread = threading.Thread(target=self._run, args=(spec,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Break every connection and wait for the threads."""
        self.num_stops += 1
        for channel in self._channels:
            channel.wake()
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive(), "a scripted rank outlived stop"

    def describe_exit(self, rank: int) -> str | None:
        """Return what the test put into `exits`."""
        return self.exits.get(rank)

    def _run(self, spec: RankSpec) -> None:
        try:
            channel, _ = connect_to_leader(spec.leader_host, spec.leader_port, spec.secret)
        except ConnectionLost:
            return
        self._channels.append(channel)
        try:
            self._scripts.get(spec.rank, well_behaved)(spec, channel)
        except ConnectionLost:
            pass
        finally:
            # As a process that ends does, and unlike close() alone, also if another thread is in recv.
            channel.wake()
            channel.close()


def stranger(port: int, data: bytes) -> socket.socket:
    """Return a connection of somebody who does not know the secret and sends `data`."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.sendall(data)
    return sock
