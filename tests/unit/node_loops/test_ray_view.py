from cluster.node.ray_view import Bundle, NodeLoad, RayActor, RayNode, RayPlacement, state_of

LABELS = {"eagleray/instance": "i-1", "eagleray/group": "gpu"}


def actor(class_name, node="n1", state="ALIVE"):
    return RayActor(class_name, state, node)


def test_a_node_shows_what_would_have_to_leave_it():
    actors = [
        actor("ServeReplica:llama:ReplicaGroup"),
        actor("ServeReplica:gateway:Gateway"),
        actor("ProxyActor"),
        actor("RankActor"),
        actor("RankActor", state="DEAD"),
    ]
    placements = [RayPlacement("CREATED", [Bundle({"GPU": 1.0}, "n1")]), RayPlacement("REMOVED", [Bundle({}, "n1")])]
    state = state_of([RayNode("n1", "ALIVE", LABELS), RayNode("n2", "DEAD")], actors, placements)
    assert state.nodes == [NodeLoad("n1", "i-1", "gpu", num_ranks=2, num_leaders=1, num_movable=1)]
    assert state.demand == ([], 0, 0)


def test_a_proxy_alone_does_not_keep_a_node():
    (node,) = state_of([RayNode("n1", "ALIVE", LABELS)], [actor("ProxyActor")], []).nodes
    assert node.is_empty


def test_what_has_no_place_is_demand():
    actors = [
        actor("ServeReplica:llama:ReplicaGroup", None, "PENDING_CREATION"),
        actor("ServeReplica:gateway:Gateway", None, "PENDING_CREATION"),
        actor("Unrelated", None, "PENDING_CREATION"),
    ]
    placements = [RayPlacement("PENDING", [Bundle({"GPU": 1.0}), Bundle({"GPU": 1.0})])]
    demand = state_of([], actors, placements).demand
    assert demand == ([({"GPU": 1.0}, {"GPU": 1.0})], 1, 1)


def test_the_class_name_of_leaders_and_ranks_is_what_ray_calls_them():
    from cluster.node import ray_view
    from cluster.rank_actor import RankActor
    from deployments.config import MODEL_DEPLOYMENT

    assert f":{MODEL_DEPLOYMENT}" == ray_view._MODEL_REPLICA
    assert RankActor.__name__ == ray_view._RANK
