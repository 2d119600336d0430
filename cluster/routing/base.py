"""The seam between a router and its policy. Pure: no Ray, no sockets, so the simulator runs the same objects."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec


class GroupView(msgspec.Struct, frozen=True):
    """One group as a router sees it when it picks."""

    group_id: str
    num_outstanding_tokens: int
    """Of the router's own reservations plus what the group last reported of other gateways' work."""
    num_waiting: int
    num_running: int


class RequestCost(NamedTuple):
    """What a request will ask of a group."""

    num_prefill_tokens: int
    num_decode_tokens: int

    @property
    def num_tokens(self) -> int:
        """Prefill and decode together."""
        return self.num_prefill_tokens + self.num_decode_tokens


class RoutingPolicy(Protocol):
    """A pure function on a load view."""

    def pick(self, groups: Sequence[GroupView], cost: RequestCost) -> str:
        """Return the group_id to use. `groups` is never empty and comes least recently picked first, so that taking the
        first of equals is fair without a memory. Must not keep references to `groups`.
        """
        ...
