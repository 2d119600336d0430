"""Every routing policy by name."""

from collections.abc import Callable, Mapping
from random import Random
from typing import Annotated

from pydantic import AfterValidator

from cluster.routing.base import RoutingPolicy
from cluster.routing.baselines.dynamo import DynamoLinear
from cluster.routing.baselines.least_outstanding import LeastOutstandingTokens, LeastRequests
from cluster.routing.baselines.llm_d import LlmD
from cluster.routing.baselines.power_of_two import PowerOfTwo
from cluster.routing.baselines.random_choice import RandomChoice
from cluster.routing.baselines.ray_prefix import RayPrefix
from cluster.routing.baselines.round_robin import RoundRobin
from cluster.routing.baselines.sglang import SGLangCacheAware
from cluster.routing.cost import CostPolicy

POLICIES: Mapping[str, Callable[[Random], RoutingPolicy]] = {
    "cost": CostPolicy,
    "dynamo": lambda rng: DynamoLinear(),
    "least-requests": lambda rng: LeastRequests(),
    "least-tokens": lambda rng: LeastOutstandingTokens(),
    "llm-d": lambda rng: LlmD(),
    "power-of-two": PowerOfTwo,
    "random": RandomChoice,
    "ray-prefix": RayPrefix,
    "round-robin": lambda rng: RoundRobin(),
    "sglang": SGLangCacheAware,
}
"""Built with a generator of their own: those that choose at random draw from it and from nothing else."""


def _known(name: str) -> str:
    if name not in POLICIES:
        raise ValueError(f"no such routing policy; use one of {', '.join(sorted(POLICIES))}")
    return name


PolicyName = Annotated[str, AfterValidator(_known)]
"""A key of POLICIES, in configurations."""
