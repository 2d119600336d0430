"""The gateway's end of the token channel. Filled in below this signature."""

from collections.abc import Callable

from cluster.status import ChannelAddress
from deployments.transport import TokenStream
from engine.request import EngineLoad, GenerationRequest


class TcpTransport:
    """A TokenTransport over one connection to one group."""

    @classmethod
    async def connect(
        cls,
        address: ChannelAddress,
        group_id: str,
        *,
        on_load: Callable[[EngineLoad], None] | None = None,
        connect_timeout_s: float = 5.0,
        submit_timeout_s: float = 5.0,
        silence_timeout_s: float = 10.0,
    ) -> "TcpTransport":
        """Return an open transport. Raises ReplicaFailed if nobody answers, or another group does."""
        raise NotImplementedError

    @property
    def group_id(self) -> str:
        """The group at the other end."""
        raise NotImplementedError

    @property
    def is_open(self) -> bool:
        """Whether submit may succeed."""
        raise NotImplementedError

    @property
    def load(self) -> EngineLoad | None:
        """The group's latest report."""
        raise NotImplementedError

    async def submit(self, request: GenerationRequest) -> TokenStream:
        """Return the stream once the group accepted. Raises what the group refused with, or ReplicaFailed."""
        raise NotImplementedError

    async def close(self) -> None:
        """Close; open streams end in ReplicaFailed. Idempotent."""
        raise NotImplementedError
