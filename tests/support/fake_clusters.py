"""A Ray cluster for the loops of a head: nodes and demand as the test says, drains remembered."""

from cluster.node.ray_view import ClusterState, Demand, NodeLoad

NO_DEMAND = Demand([], 0, 0)


class FakeCluster:
    """A `Cluster`."""

    def __init__(self, *nodes: NodeLoad) -> None:
        self.nodes = list(nodes)
        self.demand = NO_DEMAND
        self.drained: list[tuple[str, float]] = []
        """(node id, seconds) of each call."""

    def look(self) -> ClusterState:
        return ClusterState(list(self.nodes), self.demand)

    def drain(self, node_id: str, reason: str, deadline_s: float) -> None:
        assert reason
        self.drained.append((node_id, deadline_s))

    def set(self, instance_id: str, **changes: int) -> None:
        """Change what a node holds."""
        self.nodes = [node._replace(**changes) if node.instance_id == instance_id else node for node in self.nodes]
