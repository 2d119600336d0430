"""Which bundles a group asks Ray for, and which rank sits in which bundle. Pure: Ray itself is in ray_launcher."""

from collections.abc import Mapping
from typing import Literal

from cluster.config import PlacementConfig

Resources = dict[str, float]
"""What Ray reserves: `{"CPU": 1.0}`, `{"GPU": 1.0, "CPU": 1.0}`."""


def rank_resources(config: PlacementConfig, device: Literal["cpu", "cuda"]) -> Resources:
    """Return what one rank reserves, which is also one bundle. Ray refuses empty bundles, so a rank takes some CPU."""
    resources: Resources = {"CPU": max(config.cpus_per_rank, 0.001)}
    if device == "cuda":
        resources["GPU"] = float(config.gpus_per_rank)
    return resources


def bundle_of_rank(node_of_bundle: Mapping[int, str], leader_node: str) -> list[int]:
    """Return the bundle index for each rank: the leader's node first, the ranks of a node next to each other.

    Ray promises nothing about the order in which bundles land on nodes (ray issue 59547), and neighbours in rank order
    talk most.
    """
    first_bundle: dict[str, int] = {}
    for bundle in sorted(node_of_bundle):
        first_bundle.setdefault(node_of_bundle[bundle], bundle)

    def key(bundle: int) -> tuple[bool, int, int]:
        node = node_of_bundle[bundle]
        return node != leader_node, first_bundle[node], bundle

    return sorted(node_of_bundle, key=key)


def describe_room(asked: Resources, num_ranks: int, total: Mapping[str, float], free: Mapping[str, float]) -> str:
    """Return what was asked for and what the cluster has, in one line."""
    wanted = ", ".join(f"{name} {amount:g}" for name, amount in sorted(asked.items()))
    room = ", ".join(f"{name} {free.get(name, 0):g} free of {total.get(name, 0):g}" for name in sorted(asked))
    return f"{num_ranks} ranks x ({wanted}); the cluster has {room}"
