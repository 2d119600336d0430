"""The seam between whatever accepts requests from outside (token channel, in-process transport) and a replica group."""

from typing import Protocol

from cluster.status import GroupStatus
from engine.request import EngineLoad, EventSink, GenerationRequest, Placement


class SubmitTarget(Protocol):
    """One model copy that takes requests. Every method may be called from any thread and returns at once."""

    def submit(self, request: GenerationRequest, sink: EventSink) -> Placement:
        """Take `request`; exactly one terminal event for it will reach `sink`, whatever happens. Return what it adds.

        A caller passes the same `sink` object for all its requests: events of one step that share a sink come in one
        call, on the engine thread, which may begin before submit returns.

        Raises RequestError, Overloaded or ReplicaFailed if it is not taken; then nothing reaches `sink`.
        """
        ...

    def cancel(self, request_id: str) -> None:
        """End the request with finish_reason `cancelled` within a step; unknown or finished ids are ignored."""
        ...

    def load(self) -> EngineLoad | None:
        """Return how busy the copy is, every request included whose submit has returned; None without an engine."""
        ...

    def status(self) -> GroupStatus:
        """Return what the group would announce now."""
        ...
