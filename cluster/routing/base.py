"""The seam between a router and its policy. Pure: no Ray, no sockets, so the simulator runs the same objects."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

from engine.step_costs import StepCosts

PRIOR_STEP_COSTS = StepCosts(base_s=0.016, prefill_token_s=1 / 8000, sequence_s=1e-4, kv_token_s=3.4e-8)
"""Of a group nobody has heard of, among groups nobody has heard of: a 70B model on four GPUs of the H100 class."""

PRIOR_MAX_STEP_TOKENS = 2048


class RoutingRequest(NamedTuple):
    """What a request will ask of a group."""

    num_tokens: int
    """Of the prompt, and of what was already emitted when a broken stream goes on elsewhere."""
    max_tokens: int
    """Most output tokens still wanted."""
    prefix_keys: Sequence[int] = ()
    """Of the prompt's beginnings, shortest first; see `engine.prefix_keys`. Without them no cached prefix is found."""
    ttft_target_s: float | None = None
    """A first token within this time is as good as an earlier one."""
    ttft_limit_s: float | None = None
    """A first token later than this is worth nothing: better refuse at once."""
    model: str = ""
    """Whose usual output length to expect."""
    num_expected_tokens: float | None = None
    """How many of `max_tokens` will likely come; None has the router fill in what it has learned of `model`."""

    @property
    def num_likely_tokens(self) -> float:
        """Output to plan for: what is expected, else all that is allowed."""
        return self.max_tokens if self.num_expected_tokens is None else self.num_expected_tokens


class GroupView(msgspec.Struct):
    """One group as a router sees it when it picks. The router keeps it up to date; policies only read it."""

    group_id: str
    num_cached_tokens: int = 0
    """Of this request's prompt, at its beginning: in the group's prefix cache, or on the way there in front of it."""
    num_queued_tokens: int = 0
    """Prompt tokens of other requests that are neither computed nor cached."""
    num_outstanding_tokens: int = 0
    """Queued tokens plus output that may still be generated."""
    num_waiting: int = 0
    num_running: int = 0
    num_kv_tokens: int = 0
    """Resident for running requests."""
    max_kv_tokens: int = 0
    """0 if the group has not said."""
    max_step_tokens: int = PRIOR_MAX_STEP_TOKENS
    step_costs: StepCosts = PRIOR_STEP_COSTS
    """The group's own once it has learned them, else a neighbour's."""
    is_stale: bool = False
    """Whether its last report is so old that what is seen here deserves half the trust."""

    @property
    def num_requests(self) -> int:
        """Waiting and running together."""
        return self.num_waiting + self.num_running

    @property
    def kv_usage(self) -> float:
        """Share of the memory for keys and values that is used or queued for; 0 if the group has not said its size."""
        used = self.num_kv_tokens + self.num_queued_tokens
        return min(1.0, used / self.max_kv_tokens) if self.max_kv_tokens else 0.0


class RoutingPolicy(Protocol):
    """A choice between groups, by what is seen of them alone."""

    def pick(self, groups: Sequence[GroupView], request: RoutingRequest) -> str:
        """Return the group_id to use. `groups` is never empty and comes least recently picked first, so that taking the
        first of equals is fair without a memory. Must neither change nor keep `groups`.

        Raises Overloaded with retry_after_s if no group can give the first token within `request.ttft_limit_s`.
        """
        ...
