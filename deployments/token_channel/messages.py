"""The token channel's vocabulary: one authenticated TCP connection per gateway and group, msgpack frames.

    gateway -> group   Submit, Cancel
    group -> gateway   Welcome once, then Accepted or Refused per Submit, one Events per step, Load every 100 ms or so

Token ids only: text, JSON and HTTP stay on the gateway's side. A broken connection means the group is lost to this
gateway, and every stream on it ends in ReplicaFailed (until a later issue resumes it elsewhere).
"""

import msgspec

from core.errors import ErrorInfo
from engine.request import EngineLoad, GenerationRequest, TokenEvent


class Welcome(msgspec.Struct, frozen=True, tag=True):
    """First frame of a group."""

    group_id: str
    model: str
    generation: int


class Submit(msgspec.Struct, frozen=True, tag=True):
    """A request for this group. Its id must be unique among the gateway's open requests on this connection."""

    request: GenerationRequest


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """The client is gone; KV blocks are freed within a step. Unknown ids are ignored."""

    request_id: str


class Accepted(msgspec.Struct, frozen=True, tag=True):
    """The group owns the request: exactly one terminal event will follow."""

    request_id: str


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The group did not take the request; nothing follows."""

    request_id: str
    error: ErrorInfo


class Events(msgspec.Struct, frozen=True, tag=True):
    """All that one engine step did for this gateway's requests: StepEvents, without names that were just sent."""

    events: list[TokenEvent]
    token_ids: list[int] = []
    """Of requests with nothing else to tell; to be taken before `events`."""
    request_ids: list[str] | None = None
    """Whose `token_ids` are; None: those of the latest frame that named any."""


class Load(msgspec.Struct, frozen=True, tag=True):
    """How busy the group is."""

    sequence: int
    load: EngineLoad


FromGateway = Submit | Cancel
FromGroup = Welcome | Accepted | Refused | Events | Load
