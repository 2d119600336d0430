"""The states of a replica group and what moves it between them; pure, so that a table is the whole truth.

starting ──loaded──> ready ──broke──> restarting ──loaded──> ready
   │                   │                  │
   └───────drain───────┴──────drain───────┴─────> draining ──broke──> failed
   any but draining: gave_up ──> failed, which nothing leaves (Serve replaces the replica)
"""

from typing import Literal

from cluster.status import GroupState

GroupEvent = Literal["loaded", "broke", "gave_up", "drain"]
"""loaded: every rank is ready. broke: this generation of ranks failed and another may be tried. gave_up: none may."""

_TRANSITIONS: dict[tuple[GroupState, GroupEvent], GroupState] = {
    ("starting", "loaded"): "ready",
    ("starting", "broke"): "restarting",
    ("starting", "gave_up"): "failed",
    ("starting", "drain"): "draining",
    ("ready", "broke"): "restarting",
    ("ready", "gave_up"): "failed",
    ("ready", "drain"): "draining",
    ("restarting", "loaded"): "ready",
    ("restarting", "broke"): "restarting",
    ("restarting", "gave_up"): "failed",
    ("restarting", "drain"): "draining",
    # Ranks that finish loading while the group drains change nothing: there is nobody to serve.
    ("draining", "loaded"): "draining",
    ("draining", "broke"): "failed",
    ("draining", "gave_up"): "failed",
    ("draining", "drain"): "draining",
    ("failed", "drain"): "failed",
    ("failed", "gave_up"): "failed",
}


def next_state(state: GroupState, event: GroupEvent) -> GroupState:
    """Return the state after `event`. Raises ValueError for an event that cannot happen in `state` (a bug of ours)."""
    try:
        return _TRANSITIONS[state, event]
    except KeyError:
        raise ValueError(f"a {state} group cannot see {event!r}") from None
