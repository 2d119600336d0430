"""Groups whose events a test sends by hand, and the unbroken streams over them."""

import asyncio

from cluster.status import ChannelAddress, GroupState
from core.clock import Clock
from core.errors import EaglerayError, ErrorInfo, NotReady, RankDied
from deployments.groups.directory import GroupDirectory
from deployments.groups.group_search import StreamLimits
from deployments.groups.in_process import InProcessTransport
from deployments.groups.transport import GroupListener
from deployments.groups.unbroken import UnbrokenStreams
from engine.request import TokenEvent
from tests.support.fake_target import FakeTarget, group_status


class Fleet:
    """Groups of the model `tiny`, all ready once `start` has returned."""

    def __init__(self, *group_ids: str, limits: StreamLimits | None = None, clock: Clock | None = None) -> None:
        self.targets = {group_id: FakeTarget(group_id) for group_id in group_ids}
        self.listeners: dict[str, GroupListener] = {}
        self.directory = GroupDirectory(connect=self._connect, clock=clock)
        self.streams = UnbrokenStreams(self.directory, limits, clock)

    async def start(self) -> "Fleet":
        """Announce every group; returns when all are connected."""
        for group_id in self.targets:
            await self.announce(group_id)
        return self

    async def announce(self, group_id: str, state: GroupState = "ready") -> None:
        """Let a group say in which state it is."""
        address = ChannelAddress("127.0.0.1", 1, b"secret")
        self.directory.announce(group_status(group_id, state=state, channel=address))
        await self.settle()

    async def break_group(self, group_id: str, error: EaglerayError | None = None) -> None:
        """End every request of a group; it refuses from now on, though gateways still think it ready."""
        target = self.targets[group_id]
        info = ErrorInfo.of(error or RankDied(f"a rank of {group_id} died"))
        target.refusal = NotReady(f"{group_id} is restarting")
        target.step([TokenEvent(request_id, [], error=info) for request_id in list(target.sinks)])
        await self.settle()

    async def heal(self, group_id: str) -> None:
        """Let a group take requests again, and say so."""
        self.targets[group_id].refusal = None
        await self.announce(group_id, "restarting")
        await self.announce(group_id, "ready")

    def give(self, group_id: str, *token_ids: int) -> None:
        """Have a group generate the same tokens for every request it holds."""
        target = self.targets[group_id]
        target.step([TokenEvent(request_id, list(token_ids)) for request_id in target.sinks])

    def finish(self, group_id: str) -> None:
        """Have a group end every request it holds."""
        target = self.targets[group_id]
        target.step([TokenEvent(request_id, [], finish_reason="stop") for request_id in list(target.sinks)])

    async def settle(self) -> None:
        """Let the loop take some turns."""
        for _ in range(12):
            await asyncio.sleep(0)

    async def close(self) -> None:
        """Close the directory."""
        await self.directory.close()

    async def _connect(self, address: ChannelAddress, group_id: str, listener: GroupListener) -> InProcessTransport:
        self.listeners[group_id] = listener
        return InProcessTransport(self.targets[group_id])
