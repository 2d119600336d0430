"""The token channel's vocabulary: one authenticated TCP connection per gateway and group, msgpack frames.

    gateway -> group   Submit, Cancel; WantPrefixes after a gap in prefix news
    group -> gateway   Welcome once, then Accepted or Refused per Submit, one Events per step, Load every 100 ms or so,
                       Placed within 10 ms of what other gateways placed

Token ids only: text, JSON and HTTP stay on the gateway's side. A broken connection means the group is lost to this
gateway, and every stream on it ends in ReplicaFailed; the gateway goes on with them in another group.
"""

import msgspec

from core.errors import ErrorInfo
from engine.prefix_feed import PrefixNews
from engine.request import EngineLoad, GenerationRequest, Placement, TokenEvent

PROTOCOL_VERSION = 2
"""Of this vocabulary; grows whenever an end of the version before would misunderstand a frame."""


class Welcome(msgspec.Struct, frozen=True, tag=True):
    """First frame of a group; every version can read it."""

    group_id: str
    model: str
    generation: int
    protocol: int = 1
    """The group's PROTOCOL_VERSION; the first version did not say."""


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


class Load(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """How busy the group is, and what changed in its prefix cache since the Load before."""

    sequence: int
    load: EngineLoad
    prefixes: PrefixNews | None = None
    """A snapshot in answer to WantPrefixes and, if there is an engine, soon after the welcome."""


class Placed(msgspec.Struct, frozen=True, tag=True):
    """What the group has just accepted from other gateways; every later Load counts it."""

    placements: list[Placement]


class WantPrefixes(msgspec.Struct, frozen=True, tag=True):
    """The gateway has missed prefix news, or knows another epoch's: it gets no more of it before a snapshot."""


FromGateway = Submit | Cancel | WantPrefixes
FromGroup = Welcome | Accepted | Refused | Events | Load | Placed
