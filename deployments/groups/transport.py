"""The seam between a gateway and a replica group."""

from collections.abc import AsyncIterator, Callable
from typing import NamedTuple, Protocol

from engine.prefix_feed import PrefixNews
from engine.request import EngineLoad, GenerationRequest, Placement, TokenEvent


def ignore(news: object) -> None:
    """Take what nobody wants to know."""


def ignore_prefixes(news: PrefixNews) -> bool:
    """Take prefix news that nobody wants to know; none is ever missed."""
    return True


class GroupListener(NamedTuple):
    """Who hears what a group tells its routers. Called on the transport's event loop; not to block or raise."""

    on_load: Callable[[EngineLoad], None] = ignore
    """Takes each report, which counts every request whose submit has returned."""
    on_prefixes: Callable[[PrefixNews], bool] = ignore_prefixes
    """Returns whether the news could be used; if not, a snapshot follows."""
    on_placed: Callable[[Placement], None] = ignore
    """Takes each request that the group accepted from another gateway, unless a report already counts it."""


NOBODY = GroupListener()
"""A listener that ignores everything."""


class TokenStream(Protocol):
    """The events of one accepted request. Use as an async context manager: leaving it early cancels the request."""

    async def __aenter__(self) -> "TokenStream":
        """Enter; nothing is sent, the request is already accepted."""
        ...

    async def __aexit__(self, *exc: object) -> None:
        """Cancel the request at the group unless its terminal event was seen."""
        ...

    def __aiter__(self) -> AsyncIterator[TokenEvent]:
        """Yield events in order; the last one is terminal. A broken group yields a terminal event with its error."""
        ...


class TokenTransport(Protocol):
    """A way to reach one group."""

    @property
    def group_id(self) -> str:
        """The group at the other end."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether submit may succeed."""
        ...

    @property
    def load(self) -> EngineLoad | None:
        """The group's latest report."""
        ...

    async def submit(self, request: GenerationRequest) -> TokenStream:
        """Return the stream once the group accepted. Raises what the group refused with, or ReplicaFailed."""
        ...

    async def close(self) -> None:
        """Close; open streams end in ReplicaFailed. Idempotent."""
        ...
