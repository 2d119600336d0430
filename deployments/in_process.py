"""A TokenTransport to a group in the same process. Filled in below this signature."""

import asyncio

from cluster.submit_target import SubmitTarget
from deployments.transport import TokenStream
from engine.request import EngineLoad, GenerationRequest


class InProcessTransport:
    """A TokenTransport over a SubmitTarget of this process; streams are read on `loop`."""

    def __init__(self, target: SubmitTarget, loop: asyncio.AbstractEventLoop | None = None) -> None:
        raise NotImplementedError

    @property
    def group_id(self) -> str:
        """The group's id."""
        raise NotImplementedError

    @property
    def is_open(self) -> bool:
        """Whether submit may succeed."""
        raise NotImplementedError

    @property
    def load(self) -> EngineLoad | None:
        """The group's load now."""
        raise NotImplementedError

    async def submit(self, request: GenerationRequest) -> TokenStream:
        """Return the stream once the group accepted. Raises what the group refused with."""
        raise NotImplementedError

    async def close(self) -> None:
        """Close; open streams end in ReplicaFailed. Idempotent."""
        raise NotImplementedError
