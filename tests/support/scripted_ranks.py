"""A RankLauncher whose ranks are threads that follow a script, for testing the leader's end of the rank channel."""

import os
import socket
import threading
from collections.abc import Callable, Sequence

import msgspec

from core.frames import ConnectionLost, send_frame
from core.progress import Progress
from parallel.plan import RowToken, SampledTokens, StepResult
from parallel.rank.channel import LeaderSocket, connect_to_leader, open_connection
from parallel.rank.messages import (
    Arrived,
    Enlist,
    Joined,
    Listening,
    Load,
    Loaded,
    Plan,
    Pulse,
    RankProgress,
    RankSpec,
    Rendezvous,
    Result,
    Shutdown,
)

Script = Callable[[RankSpec, LeaderSocket], None]


def arrive(spec: RankSpec, channel: LeaderSocket) -> Enlist:
    """Say Arrived; return what the process is enlisted as."""
    channel.send(Arrived(spec.seat, os.getpid()))
    return await_enlistment(channel)


def await_enlistment(channel: LeaderSocket) -> Enlist:
    """Return what the process is enlisted as; what comes before is of a generation that is over."""
    while not isinstance(order := channel.receive(), Enlist):
        if isinstance(order, Shutdown):
            raise ConnectionLost("the leader wants no more")
    return order


def join(spec: RankSpec, channel: LeaderSocket, order: Enlist) -> None:
    """Say Joined."""
    channel.send(
        Joined(
            rank=order.rank,
            generation=order.generation,
            pid=1000 + spec.seat,
            host="127.0.0.1",
            node="node",
            device=spec.device,
            total_memory_bytes=2000,
            free_memory_bytes=1000,
        )
    )


def form_group(spec: RankSpec, channel: LeaderSocket, order: Enlist | None = None) -> None:
    """Do what a rank does until `SocketRankPool.join` returns; arrive first, unless it was enlisted by `order`."""
    order = order or arrive(spec, channel)
    join(spec, channel, order)
    if spec.world_size > 1:
        message = channel.receive()
        assert isinstance(message, Rendezvous)
        if order.rank == 0:
            channel.send(Listening(4711))
        else:
            assert message.port == 4711
    channel.send(RankProgress(Progress(order.rank, "connect", 1, 1)))


def get_ready(spec: RankSpec, channel: LeaderSocket, order: Enlist | None = None) -> None:
    """Do what a rank does until `SocketRankPool.load` returns."""
    form_group(spec, channel, order)
    if not isinstance(channel.receive(), Load):
        raise ConnectionLost("the leader wants no model")
    channel.send(RankProgress(Progress(spec.seat, "load", 1, 2)))
    channel.send(Loaded(spec.seat, 1, 1, 0.0))


def answer_plans(spec: RankSpec, channel: LeaderSocket) -> Enlist:
    """Answer every plan with token 7 of row 0, until enlisted anew."""
    while isinstance(message := channel.receive(), Plan):
        if spec.seat == 0:
            channel.send(Result(StepResult(message.plan.step, SampledTokens.of([RowToken(0, 7)]), 0.0)))
    if not isinstance(message, Enlist):
        raise ConnectionLost("the leader wants no more")
    return message


def well_behaved(spec: RankSpec, channel: LeaderSocket) -> None:
    """Do everything right, in one generation after another."""
    order = arrive(spec, channel)
    while True:
        get_ready(spec, channel, order)
        order = answer_plans(spec, channel)


class ScriptedLauncher:
    """Runs `scripts[seat]`, or `well_behaved`, in a thread; the connections break when the script returns.

    A process that replaces another in its seat is well-behaved.
    """

    def __init__(self, scripts: dict[int, Script] | None = None) -> None:
        self.specs: list[RankSpec] = []
        """Of every process, in order."""
        self.exits: dict[int, str] = {}
        self.ended: list[int] = []
        """Seats whose processes were ended one by one."""
        self.num_stops = 0
        self._scripts = dict(scripts or {})
        self._threads: dict[int, threading.Thread] = {}
        self._killed: set[threading.Thread] = set()
        self._connections: dict[int, tuple[LeaderSocket, socket.socket]] = {}

    def launch(self, specs: Sequence[RankSpec]) -> None:
        """Start one thread per spec."""
        self.specs += specs
        for spec in specs:
            script = self._scripts.pop(spec.seat, well_behaved)
            thread = threading.Thread(target=self._run, args=(spec, script), daemon=True)
            self._threads[spec.seat] = thread
            thread.start()

    def end(self, seat: int, pid: int | None = None) -> None:
        """Break the seat's connections and wait for its thread."""
        self.ended.append(seat)
        self._end(seat)

    def stop(self) -> None:
        """Break every connection and wait for the threads."""
        self.num_stops += 1
        for seat in list(self._threads):
            self._end(seat)

    def describe_exit(self, seat: int) -> str | None:
        """Return what the test put into `exits`."""
        return self.exits.get(seat)

    def _end(self, seat: int) -> None:
        thread = self._threads.get(seat)
        if thread is not None:
            self._killed.add(thread)
            if (connections := self._connections.get(seat)) is not None:
                connections[0].wake()
            thread.join(5)
            assert not thread.is_alive(), "a scripted rank outlived its end"

    def _run(self, spec: RankSpec, script: Script) -> None:
        try:
            channel, _ = connect_to_leader(spec.leader_host, spec.leader_port, spec.secret)
            pulse = open_connection(spec.leader_host, spec.leader_port, spec.secret)
            send_frame(pulse, msgspec.msgpack.encode(Pulse(spec.seat, needs_gil=False)))
        except ConnectionLost:
            return
        self._connections[spec.seat] = channel, pulse
        try:
            if threading.current_thread() not in self._killed:
                script(spec, channel)
        except ConnectionLost:
            pass
        finally:
            # As a process that ends does, and unlike close() alone, also if another thread is in recv.
            channel.wake()
            channel.close()
            pulse.close()


def stranger(port: int, data: bytes) -> socket.socket:
    """Return a connection of somebody who does not know the secret and sends `data`."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.sendall(data)
    return sock
