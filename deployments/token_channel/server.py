"""The group's end of the token channel. Filled in below this signature."""

from cluster.status import ChannelAddress
from cluster.submit_target import SubmitTarget


class TokenChannelServer:
    """Lets gateways submit to `target`. Lives on one event loop."""

    def __init__(
        self,
        target: SubmitTarget,
        secret: bytes,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        advertised_host: str | None = None,
        max_buffered_bytes: int = 8 * 2**20,
        max_connections: int = 1024,
    ) -> None:
        raise NotImplementedError

    async def start(self) -> ChannelAddress:
        """Listen; return where. Port 0 becomes the one the system chose."""
        raise NotImplementedError

    @property
    def address(self) -> ChannelAddress:
        """Where gateways connect to: the advertised host (default: the bound one), the bound port, the secret."""
        raise NotImplementedError

    async def close(self) -> None:
        """Stop listening and close every connection; their open requests are cancelled. Idempotent."""
        raise NotImplementedError
