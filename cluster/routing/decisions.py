"""What a router decided, counted by why: whether caches or queues have the say is seen on a dashboard."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal, get_args

from cluster.routing.base import GroupView

Why = Literal["only_choice", "cached_prefix", "cache_passed_over", "least_cost", "refused"]
REASONS: tuple[Why, ...] = get_args(Why)


def why_picked(picked: GroupView, candidates: Sequence[GroupView]) -> Why:
    """Return what the choice shows: which cache the policy had to weigh, and whether it took it."""
    if len(candidates) == 1:
        return "only_choice"
    most_cached = max(group.num_cached_tokens for group in candidates)
    if not most_cached:
        return "least_cost"
    return "cached_prefix" if picked.num_cached_tokens == most_cached else "cache_passed_over"


class Decisions:
    """Counts since the router began."""

    def __init__(self) -> None:
        self.by_reason: Counter[Why] = Counter()
        self.num_prompt_tokens = 0
        """Of all requests that got a group."""
        self.num_cached_tokens = 0
        """What was expected of them in their groups' prefix caches."""

    def note(self, picked: GroupView, candidates: Sequence[GroupView], num_tokens: int) -> None:
        """Count a choice."""
        self.by_reason[why_picked(picked, candidates)] += 1
        self.num_prompt_tokens += num_tokens
        self.num_cached_tokens += picked.num_cached_tokens

    def note_refused(self) -> None:
        """Count a request that no group can begin in time."""
        self.by_reason["refused"] += 1
