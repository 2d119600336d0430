"""Every replica group a gateway knows. Filled in below this signature."""

from collections.abc import Awaitable, Callable, Collection
from typing import NamedTuple

from cluster.routing.base import RequestCost
from cluster.routing.router import Router
from cluster.status import ChannelAddress, GroupStatus
from core.clock import Clock, MonotonicClock
from deployments.token_channel.client import TcpTransport
from deployments.transport import TokenTransport
from engine.request import EngineLoad, GenerationRequest

Connect = Callable[[ChannelAddress, str, Callable[[EngineLoad], None]], Awaitable[TokenTransport]]
"""Opens a transport: (address, group_id, on_load). Raises ReplicaFailed."""


class ServedModel(NamedTuple):
    """What a gateway must know of a model before it can take a request for it."""

    name: str
    max_model_len: int
    """The smallest of its groups'."""
    source: str
    """Where tokenizer and chat template are read from."""
    revision: str | None


async def connect_tcp(address: ChannelAddress, group_id: str, on_load: Callable[[EngineLoad], None]) -> TokenTransport:
    """Open a token channel."""
    return await TcpTransport.connect(address, group_id, on_load=on_load)


class RoutedStream:
    """A TokenStream that holds its reservation until it ends. Use as an async context manager, like any TokenStream."""

    @property
    def group_id(self) -> str:
        """The group that serves the request."""
        raise NotImplementedError


class GroupDirectory:
    """Groups, their transports and the router between them. Lives on one event loop."""

    def __init__(
        self,
        expected: Collection[str] | None = None,
        *,
        router: Router | None = None,
        connect: Connect = connect_tcp,
        clock: Clock | None = None,
        forget_after_s: float = 15.0,
    ) -> None:
        """`expected`: public model names to accept announcements for; None accepts any."""
        self._clock = clock or MonotonicClock()
        raise NotImplementedError

    def start(self) -> None:
        """Begin looking after connections every quarter second on the running loop (reconnect, forget). Idempotent."""
        raise NotImplementedError

    async def close(self) -> None:
        """Close every transport; open streams end in ReplicaFailed. Idempotent."""
        raise NotImplementedError

    def subscribe(self, on_change: Callable[[GroupStatus], None]) -> None:
        """Have `on_change` called with the status of every group that appears or changes; it must not block or raise."""
        raise NotImplementedError

    def announce(self, status: GroupStatus) -> None:
        """Take what a group says about itself; call on the loop."""
        raise NotImplementedError

    def statuses(self, model: str | None = None) -> list[GroupStatus]:
        """Return the latest status of every known group (of `model`), oldest group first."""
        raise NotImplementedError

    def models(self) -> list[ServedModel]:
        """Return every model that some known group has described, by name."""
        raise NotImplementedError

    def open_groups(self, model: str) -> list[str]:
        """Return ids of the groups of `model` that may get new work now: ready and connected."""
        raise NotImplementedError

    async def submit(self, model: str, request: GenerationRequest, cost: RequestCost) -> RoutedStream:
        """Return the stream of the first group that accepts; each group is asked at most once, best first.

        Raises ModelNotFound, NotReady if no group is ready, RequestError as the group gave it, or the last refusal with
        the smallest retry_after_s any group gave.
        """
        raise NotImplementedError
