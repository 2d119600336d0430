"""The cluster's nodes are asked for by a process of its own and shown in a line each."""

import msgspec
import pytest

from cluster.node.errors import NotYet
from cluster.node.members import Member, ask_members, describe
from tests.support.node_machines import RecordedCommands, failed

HEAD = Member("a1", "10.64.0.10", True, {}, {"eagleray/instance": "i-0head", "ray.io/node-type": "head"})
WORKER = Member("b2", "10.64.0.7", True, {"CPU": 192, "GPU": 8}, {"eagleray/group": "h100"})
GONE = Member("c3", "10.64.0.8", False, {}, {})


def test_nodes_are_asked_of_the_given_gcs():
    commands = RecordedCommands({"cluster.node status": msgspec.json.encode([HEAD, GONE]).decode()})
    assert ask_members(commands, "10.64.0.10:6379") == [HEAD, GONE]
    assert commands.lines[0].endswith("-m cluster.node status --json --address 10.64.0.10:6379")
    assert HEAD.instance_id == "i-0head"
    assert GONE.instance_id == ""


def test_gcs_that_does_not_answer_is_waited_for():
    commands = RecordedCommands({"cluster.node status": failed("python", output="ConnectionError: wrong token")})
    with pytest.raises(NotYet, match="GCS at 10.64.0.10:6379 does not tell its nodes.*wrong token"):
        ask_members(commands, "10.64.0.10:6379")


def test_listing_shows_who_is_alive_and_counts_who_is_not():
    text = describe([HEAD, WORKER, GONE])
    assert "10.64.0.7" in text and "GPU 8" in text and "eagleray/group=h100" in text
    assert "ray.io" not in text
    assert text.endswith("2 nodes alive, 1 dead\n")
