"""Our engine behind our gateway in one process, without Ray: what `serve run` is measured against.

    python -m benchmarks.peers.bare_server --weights bf16 --port 8000

Everything is what `serve run` uses, but for the way between gateway and group, which is a function call here.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence

import uvicorn

from benchmarks.peers.our_config import model_args
from benchmarks.peers.server import MODEL_NAME
from cluster.config import ReplicaGroupConfig
from cluster.preflight import check_model
from cluster.replica_group import GroupIdentity, ReplicaGroup
from cluster.status import ChannelAddress
from core.logs import configure_logging
from deployments.gateway.config import GatewayConfig
from deployments.gateway.gateway import Gateway
from deployments.groups.directory import GroupDirectory
from deployments.groups.in_process import InProcessTransport
from deployments.groups.transport import GroupListener
from engine.engine import start_engine
from engine.rank_pools.local_launcher import LocalLauncher
from engine.rank_pools.options import PoolOptions
from engine.rank_pools.socket_pool import SocketRankPool

_NOWHERE = ChannelAddress("127.0.0.1", 0, b"")
"""A group without an address is not asked; this one is reached without it."""


class LocalRanks:
    """A RankSource of child processes."""

    def __init__(self, config: ReplicaGroupConfig) -> None:
        self._world_size = config.parallel.tensor_parallel_size
        num_cores = len(os.sched_getaffinity(0))
        self._options = PoolOptions(
            device="cpu", num_threads=config.parallel.threads_per_rank or max(1, num_cores // self._world_size)
        )

    def pool(self, generation: int) -> SocketRankPool:
        """Return a pool whose processes are not started yet."""
        return SocketRankPool(LocalLauncher(), self._world_size, generation, self._options)

    def close(self) -> None:
        """Nothing is reserved."""


async def serve(config: ReplicaGroupConfig, port: int) -> None:
    """Serve until SIGTERM; the ranks are gone afterwards."""
    loop = asyncio.get_running_loop()

    async def connect(address: ChannelAddress, group_id: str, listener: GroupListener) -> InProcessTransport:
        return InProcessTransport(group)

    def on_change() -> None:
        loop.call_soon_threadsafe(lambda: gateway.announce(group.status()))

    gateway_config = GatewayConfig(models=(config.name,))
    gateway = Gateway(gateway_config, GroupDirectory(gateway_config.models, connect=connect))
    identity = GroupIdentity(f"{config.name}#bare", config.name)
    group = ReplicaGroup(config, identity, check_model, LocalRanks(config), start_engine, on_change=on_change)
    group.listens_at(_NOWHERE)
    group.start()
    try:
        # uvicorn takes SIGTERM and SIGINT, and runs the gateway's own clean-up.
        await uvicorn.Server(uvicorn.Config(gateway.asgi_app(), port=port, log_level="warning")).serve()
    finally:
        group.close()


def main(arguments: Sequence[str]) -> int:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.bare_server",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--weights", choices=["bf16", "int8", "int4"], default="bf16")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args(arguments)
    configure_logging()
    config = ReplicaGroupConfig.parse(model_args(options.weights, MODEL_NAME), "benchmarks/peers/our_config.py")
    asyncio.run(serve(config, options.port))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
