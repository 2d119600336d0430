"""Ranks and leaders are killed, frozen, and left alone by their clients. One group of two ranks of the real model.

There is no other group to help, so the streams that are open wait for this one.
"""

import json
import logging
import os
import select
import signal
import socket
import time

import pytest

from tests.support.raw_streams import RawStream, story_body
from tests.support.serve_instance import RANK_TITLE, REPLICA_TITLE, model_args, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

MODEL = "smollm2-chaos"
NUM_STREAMS = 8
NUM_TOKENS = 120
NUM_LEAVING = 100
SERVING_WITHIN_S = 30.0
REPLACED_WITHIN_S = 60.0
PATIENCE_S = 8.0
"""Less than streams wait for a group (`streams.resume_wait_s`)."""
TOO_LATE = {"rank_died", "replica_failed", "not_ready", "overloaded"}
"""What those streams are told that have waited long enough."""
STEP_TIMEOUT_S = 30
"""So long that a frozen rank is found by its missing pulse, not by the deadline of its step."""

logger = logging.getLogger(__name__)


class Group:
    """The group under test and its processes."""

    def __init__(self, served, incidents):
        self.served = served
        self.incidents = incidents
        others = set(served.processes(RANK_TITLE))
        args = model_args(
            "tp2-two-replicas.yaml",
            name=MODEL,
            parallel={"step_timeout_s": STEP_TIMEOUT_S},
            restart={"stable_after_s": 0, "incident_folder": str(incidents)},
        )
        served.deploy(MODEL, args)
        self._others = others

    def ranks(self):
        return sorted(set(self.served.processes(RANK_TITLE)) - self._others)

    def leader(self):
        (pid,) = self.served.processes(f"{REPLICA_TITLE}{MODEL}:")
        return pid

    def identity(self):
        """Return (group id, generation) of the group while it is ready, else None."""
        ready = [group for group in self.served.groups(MODEL) if group["state"] == "ready"]
        return (ready[0]["group_id"], ready[0]["generation"]) if ready else None

    def open_streams(self):
        streams = [RawStream(self.served.url, MODEL, max_tokens=NUM_TOKENS) for _ in range(NUM_STREAMS)]
        for stream in streams:
            assert stream.has_begun.wait(60)
        assert [stream.ended for stream in streams] == [None] * NUM_STREAMS
        return streams

    def state(self):
        """Return what the group says it does."""
        (status,) = self.served.groups(MODEL)
        return status["state"]

    def is_back(self, former):
        """Return whether another group, or another generation of the same, just generated a token."""
        return self.identity() not in (None, former) and self.served.is_ready(MODEL)


@pytest.fixture(scope="module")
def group(served, tmp_path_factory):
    yield Group(served, tmp_path_factory.mktemp("incidents"))
    served.delete(MODEL)


def break_during_streams(group, harm, within_s):
    """Call `harm` during eight streams; return the group's new identity, which it has `within_s`.

    No stream is cut, and each goes on, unless the machine is so busy that the gateway's patience is at its end first.
    """
    streams, former = group.open_streams(), group.identity()
    harm()
    harmed_s = time.monotonic()
    wait_until(lambda: group.is_back(former), within_s, "the group serves again")
    took_s = time.monotonic() - harmed_s
    logger.info("serving again after %.1f s", took_s)
    ends = [stream.wait(120) for stream in streams]
    assert [end.transport_error for end in ends] == [None] * len(ends), "a stream was cut"
    assert [end.is_done for end in ends] == [end.error_code is None for end in ends], (
        "`[DONE]` means that all went well"
    )
    codes = {end.error_code for end in ends}
    assert codes <= {None, *TOO_LATE}
    assert codes == {None} or took_s > PATIENCE_S, "a stream did not wait for the group"
    return group.identity()


@pytest.mark.parametrize("index", [0, 1])
def test_a_killed_rank_is_replaced_in_place_while_the_other_and_every_stream_wait(group, index):
    ranks, (group_id, generation) = group.ranks(), group.identity()
    assert len(ranks) == 2
    now = break_during_streams(group, lambda: os.kill(ranks[index], signal.SIGKILL), SERVING_WITHIN_S)
    assert now == (group_id, generation + 1), "not restarted in place"
    assert set(group.ranks()) & set(ranks) == {ranks[1 - index]}, "the survivor was not kept"


@pytest.mark.parametrize("index", [0, 1])
def test_a_frozen_rank_is_found_by_its_missing_pulse_and_replaced(group, index):
    ranks, (group_id, generation) = group.ranks(), group.identity()
    now = break_during_streams(group, lambda: os.kill(ranks[index], signal.SIGSTOP), SERVING_WITHIN_S)
    assert now == (group_id, generation + 1), "not restarted in place"
    assert set(group.ranks()) & set(ranks) == {ranks[1 - index]}, "the survivor was not kept"
    newest = max(group.incidents.iterdir(), key=lambda folder: folder.name)
    facts = json.loads((newest / "incident.json").read_text())
    (frozen,) = [rank for rank in facts["ranks"] if rank["lost"]]
    assert frozen["pid"] in ranks
    assert facts["what"].startswith(f"rank {frozen['rank']} is frozen")
    assert {file.name for file in newest.glob("*.txt")} >= {"leader.txt"}


def test_a_rank_that_dies_while_nobody_asks_for_anything_is_replaced_at_once(group):
    ranks, former = group.ranks(), group.identity()
    os.kill(ranks[1], signal.SIGKILL)
    wait_until(lambda: group.state() != "ready" or group.identity() != former, 2, "the death is seen")
    wait_until(lambda: group.is_back(former), SERVING_WITHIN_S, "the group serves again")


def test_a_killed_leader_cuts_no_stream_and_serve_replaces_the_group(group):
    ranks, leader = group.ranks(), group.leader()
    break_during_streams(group, lambda: os.kill(leader, signal.SIGKILL), REPLACED_WITHIN_S)
    assert group.leader() != leader
    wait_until(lambda: not set(group.ranks()) & set(ranks), 10, "orphaned ranks are gone")


def test_a_group_that_may_not_restart_in_place_is_replaced_by_serve_at_once(served):
    name = "smollm2-once"
    others = set(served.processes(RANK_TITLE))
    served.deploy(name, model_args("quickstart.yaml", name=name, restart={"max_attempts": 0}))
    try:
        (rank,) = set(served.processes(RANK_TITLE)) - others
        (former,) = served.groups(name)
        os.kill(rank, signal.SIGKILL)
        killed_s = time.monotonic()

        def is_replaced():
            states = {group["group_id"]: group["state"] for group in served.groups(name)}
            states.pop(former["group_id"], None)
            return "ready" in states.values() and served.is_ready(name)

        wait_until(is_replaced, REPLACED_WITHIN_S, "another replica serves")
        logger.info("another replica serves after %.1f s", time.monotonic() - killed_s)
    finally:
        served.delete(name)


def test_a_hundred_clients_that_leave_give_all_kv_blocks_back(group):
    clients = [client_that_asks(group.served.port, number) for number in range(NUM_LEAVING)]
    try:
        # The others wait for room: they leave before their first token.
        wait_until(lambda: len(select.select(clients, [], [], 0)[0]) >= 16, 60, "streams run")
        metric = group.served.metric
        wait_until(lambda: max(metric("vllm:kv_cache_usage_perc", MODEL).values()) > 0, 30, "KV blocks are in use")
    finally:
        for client in clients:
            client.close()
    left_s = time.monotonic()

    def is_idle():
        metrics = ("vllm:kv_cache_usage_perc", "vllm:num_requests_running", "vllm:num_requests_waiting")
        return all(max(group.served.metric(name, MODEL).values()) == 0 for name in metrics)

    wait_until(is_idle, 30, "KV blocks are back to baseline")
    logger.info("all KV blocks free %.1f s after a hundred clients left", time.monotonic() - left_s)
    assert group.served.is_ready(MODEL)


def client_that_asks(port, number):
    """Return a bare connection on which a stream was asked for."""
    body = json.dumps(story_body(MODEL, max_tokens=1500, content=f"Story {number}.")).encode()
    client = socket.create_connection(("127.0.0.1", port))
    host = f"127.0.0.1:{port}"
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n"
    client.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
    return client
