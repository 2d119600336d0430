"""A replica group as a Ray Serve deployment: the leader process, which owns no GPU and loads no torch."""

import asyncio
import contextlib
import logging
import secrets
from functools import partial

import ray
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from cluster.autoscaling.work_meter import WorkMeter
from cluster.preflight import check_model
from cluster.ray_launcher import RayRanks
from cluster.replica_group import GroupIdentity, ReplicaGroup
from cluster.weights.model_files import ModelFiles
from core.clock import MonotonicClock
from core.cores import take_normal_priority
from core.logs import configure_logging
from deployments.announcer import Announcer
from deployments.config import ModelArgs
from deployments.token_channel.server import TokenChannelServer
from engine.prefix_feed import start_fed_engine

logger = logging.getLogger(__name__)

_BROADCAST_TIMEOUT_S = 5.0
_SECRET_BYTES = 32


class ModelReplica:
    """One replica group, reachable by its token channel, announced to every gateway. Deployed as `ReplicaGroup`.

    The constructor returns when the model can generate, so that a rolling update waits for it; gateways hear of the
    group, and of its progress, long before.
    """

    async def __init__(self, args: ModelArgs) -> None:
        """Raise StartupError if this model can never run here, ReplicaFailed if its ranks kept dying."""
        context = serve.get_replica_context()
        identity = GroupIdentity(f"{context.app_name}#{context.replica_id.unique_id}", context.app_name)
        configure_logging(group_id=identity.group_id)
        take_normal_priority()
        self._args = args
        self._loop = asyncio.get_running_loop()
        self._settled = asyncio.Event()
        self._files = ModelFiles(args.weights)
        self._group = ReplicaGroup(
            args,
            identity,
            partial(check_model, locate=self._files.locate),
            RayRanks(args, identity.group_id),
            partial(start_fed_engine, locate=self._files.locate),
            on_change=self._on_change,
        )
        host = args.channel_host or _default_channel_host()
        self._channel = TokenChannelServer(
            self._group, secrets.token_bytes(_SECRET_BYTES), host=host, prefix_feed=self._group.prefix_feed
        )
        self._announcer = Announcer(self._group.status, Gateways(args.gateway).broadcast)
        self._announcing: asyncio.Task[None] | None = None
        self._clock = MonotonicClock()
        self._work_meter = WorkMeter(args.scheduler.max_running)
        try:
            await self._start()
        except BaseException:
            await self._shut_down(drain_timeout_s=0.0)
            raise

    async def check_health(self) -> None:
        """Raise once the group cannot be saved in place.

        A RayActorError makes Serve replace the replica at once; any other exception would have to be seen three times.
        """
        failure = self._group.failure()
        if failure is not None:
            raise RayActorError(error_msg=f"replica group failed: {failure}")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return what the group does, for an autoscaling policy; Serve asks while `autoscaling_config` is set."""
        load = self._group.load()
        return {} if load is None else self._work_meter.measure(self._clock.now_s(), load)._asdict()

    async def wake(self) -> None:
        """Return at once. A call that waits for a replica is what Serve starts the first one for."""

    async def __del__(self) -> None:
        """Let open streams finish, then end the ranks; Serve calls this before it stops the replica."""
        await self._shut_down(self._args.drain_timeout_s)

    async def _start(self) -> None:
        self._group.listens_at(await self._channel.start())
        self._announcing = asyncio.create_task(self._announcer.run())
        self._group.start()
        await self._settled.wait()
        failure = self._group.failure()
        if failure is not None:
            # Without the engine thread's traceback: Serve prints it, and the message says all.
            raise failure.with_traceback(None)

    async def _shut_down(self, drain_timeout_s: float) -> None:
        """Announce the end, finish what is open, leave nothing behind. Idempotent."""
        announcing, self._announcing = self._announcing, None
        if announcing is None:
            return
        # The announcer goes on meanwhile: gateways hear within a quarter second that the group drains.
        await asyncio.to_thread(self._group.drain, drain_timeout_s)
        announcing.cancel()
        self._files.close()
        # The channel last: it carries the terminal events of what `close` ends.
        await asyncio.to_thread(self._group.close)
        await self._announcer.announce()
        await self._channel.close()

    def _on_change(self) -> None:
        """Take note on the loop; called from the engine's threads, also while the loop is being closed."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._note_change)

    def _note_change(self) -> None:
        self._announcer.wake()
        if self._group.status().state in ("ready", "failed"):
            self._settled.set()


class Gateways:
    """Every replica of one gateway application, found when it exists, found again when it is deployed anew."""

    def __init__(self, application: str) -> None:
        self._application = application
        self._handle: DeploymentHandle | None = None

    async def broadcast(self, data: bytes) -> bool:
        """Call `announce(data)` on each; return False if there is none or one does not answer."""
        try:
            if self._handle is None:
                self._handle = await asyncio.to_thread(serve.get_app_handle, self._application)
            answers = self._handle.broadcast("announce", data)
            await answers.results_async(timeout_s=_BROADCAST_TIMEOUT_S)
        except (RayError, RayServeException, TimeoutError) as error:
            # Not there yet, being moved, or deleted: the next announcement is two seconds away.
            logger.debug("announcement not delivered", extra={"error": str(error)})
            return False
        return True


def _default_channel_host() -> str:
    num_nodes = sum(1 for node in ray.nodes() if node["Alive"])
    return "127.0.0.1" if num_nodes == 1 else ray.util.get_node_ip_address()
