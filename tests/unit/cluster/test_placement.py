from cluster.config import PlacementConfig
from cluster.placement import bundle_of_rank, describe_room, rank_resources


def test_a_cpu_rank_reserves_no_gpu():
    assert rank_resources(PlacementConfig(cpus_per_rank=0.5), "cpu") == {"CPU": 0.5}


def test_a_gpu_rank_reserves_its_gpu_and_some_cpu():
    assert rank_resources(PlacementConfig(cpus_per_rank=2), "cuda") == {"CPU": 2.0, "GPU": 1.0}


def test_a_rank_always_reserves_something_because_ray_refuses_empty_bundles():
    assert rank_resources(PlacementConfig(cpus_per_rank=0), "cpu")["CPU"] > 0


def test_rank_0_sits_on_the_leaders_node_wherever_its_bundles_are():
    nodes = {0: "b", 1: "a", 2: "b", 3: "a"}
    assert bundle_of_rank(nodes, leader_node="a") == [1, 3, 0, 2]


def test_ranks_of_one_node_are_neighbours_when_the_leader_has_no_bundle():
    nodes = {0: "c", 1: "b", 2: "c", 3: "b"}
    order = bundle_of_rank(nodes, leader_node="a")
    assert [nodes[bundle] for bundle in order] == ["c", "c", "b", "b"]


def test_bundle_ten_does_not_sort_before_bundle_two():
    nodes = dict.fromkeys(range(12), "a")
    assert bundle_of_rank(nodes, leader_node="a") == list(range(12))


def test_the_message_names_what_was_asked_and_what_there_is():
    text = describe_room({"GPU": 1.0, "CPU": 1.0}, 8, {"CPU": 16, "GPU": 4}, {"CPU": 9.5})
    assert "8 ranks x (CPU 1, GPU 1)" in text
    assert "CPU 9.5 free of 16" in text
    assert "GPU 0 free of 4" in text
