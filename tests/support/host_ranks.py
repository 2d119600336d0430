"""Ranks on the hosts of a HostNetwork, started by the leader's own machine."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.faults.namespaces import HostNetwork
from engine.rank_pools.options import PoolOptions
from engine.rank_pools.socket_pool import SocketRankPool
from parallel.rank.messages import RankSpec

ROOT = Path(__file__).resolve().parents[2]


class HostLauncher:
    """A RankLauncher: seat n is on host n."""

    def __init__(self, network: HostNetwork) -> None:
        self._network = network
        self._ranks: dict[int, subprocess.Popen[bytes]] = {}

    def launch(self, specs: Sequence[RankSpec]) -> None:
        for spec in specs:
            command = self._network.command(spec.seat, [sys.executable, "-m", "parallel.rank"])
            process = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT, start_new_session=True)
            self._ranks[spec.seat] = process
            assert process.stdin is not None
            with process.stdin as stdin:
                stdin.write(msgspec.json.encode(spec))

    def end(self, seat: int) -> None:
        if (process := self._ranks.get(seat)) is not None:
            process.kill()
            process.wait()

    def stop(self) -> None:
        for seat in list(self._ranks):
            self.end(seat)

    def describe_exit(self, seat: int) -> str | None:
        code = self._ranks[seat].poll() if seat in self._ranks else None
        return None if code is None else f"exit code {code}"


class HostRanks:
    """A RankSource: one rank a host, the leader on this machine."""

    def __init__(self, network: HostNetwork, world_size: int, options: PoolOptions) -> None:
        self._network = network
        self._world_size = world_size
        self._options = options

    def pool(self, generation: int) -> SocketRankPool:
        return SocketRankPool(HostLauncher(self._network), self._world_size, generation, self._options)

    def close(self) -> None:
        pass
