"""What a routing decision costs: 64 groups whose prefix caches hold a million keys, prompts of 8192 tokens.

    python -m benchmarks.routing.decision

A decision is what the gateway does for a request between its token ids and the group: hash the prompt's beginnings,
look them up, score all groups, reserve. Processor time of one thread; no network and no tokenisation. Also measured:
bytes a key takes, and what an item of news from a group costs. Prompts differ in who has their beginning: nobody, one
group nearly all, all groups the same half, or all groups some, each as much as no other, which is the worst there is.
"""

import argparse
import json
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from random import Random

import numpy as np

from benchmarks.report import shown, summary, write_report
from cluster.routing.base import RoutingRequest
from cluster.routing.cost import CostPolicy
from cluster.routing.prefix_index import PrefixIndex
from cluster.routing.reservation import Reservation
from cluster.routing.router import Router
from engine.prefix_feed import PrefixNews
from engine.prefix_keys import SPAN_TOKENS, prefix_keys
from engine.request import EngineLoad
from engine.step_costs import StepCosts

PROMPT_TOKENS = 8192
NUM_SPANS = PROMPT_TOKENS // SPAN_TOKENS
NUM_GROUPS = 64
NUM_KEYS = 1_000_000
NUM_OPEN = 256
"""Requests on their way at any time, four a group; the oldest ends as a new one comes."""
PRIVATE_SPANS = 8
"""At the end of a prompt that is known otherwise: its last question."""
GROUPS = [f"model-{index:02d}" for index in range(NUM_GROUPS)]

Prompt = bytes


class World:
    """A router that has heard of every group, and prompts of which caches hold the beginnings."""

    def __init__(self, num_keys: int) -> None:
        self.rng = Random(7)
        self.shared = self.prompt()
        self.uneven = self.prompt()
        self.cached = [self.prompt() for _ in range(num_keys // NUM_SPANS)]
        self.index = PrefixIndex(max_keys=4 * num_keys)
        self.router = Router(CostPolicy(), index=self.index)

    def prompt(self) -> Prompt:
        """Return packed token ids that nothing begins like."""
        return self.rng.randbytes(4 * PROMPT_TOKENS)

    def fill(self) -> None:
        """Have every group say what it holds: its share of the cached prompts, and of those that all begin with."""
        shared, uneven = prefix_keys(self.shared, ""), prefix_keys(self.uneven, "")
        for number, group_id in enumerate(GROUPS):
            stored = shared[: NUM_SPANS // 2] + uneven[: 2 * number + 1]
            for prompt in self.cached[number::NUM_GROUPS]:
                stored += prefix_keys(prompt, "")
            self.router.note_prefixes(group_id, PrefixNews(1, 0, True, stored, []))

    def report(self) -> None:
        """Have every group report a load of its own."""
        for group_id in GROUPS:
            self.router.report(group_id, self._load())

    def continued(self, beginning: Prompt) -> Prompt:
        """Return `beginning` with another end."""
        return beginning[: 4 * (PROMPT_TOKENS - PRIVATE_SPANS * SPAN_TOKENS)] + self.rng.randbytes(
            4 * PRIVATE_SPANS * SPAN_TOKENS
        )

    def _load(self) -> EngineLoad:
        return EngineLoad(
            num_running=self.rng.randrange(32),
            num_waiting=self.rng.randrange(4),
            num_outstanding_tokens=self.rng.randrange(100_000),
            num_blocks=30_000,
            num_free_blocks=1000,
            num_cached_blocks=10_000,
            num_steps=1,
            num_preemptions=0,
            num_generated_tokens=1,
            num_prompt_tokens=1,
            num_cached_prompt_tokens=0,
            num_uncached_tokens=self.rng.randrange(20_000),
            num_kv_tokens=self.rng.randrange(400_000),
            max_step_tokens=2048,
            step_costs=StepCosts(0.016, 1 / 8000, 1e-4, 3.4e-8),
            max_kv_tokens=480_000,
        )


class Decider:
    """Decides for one prompt after another, and times each part. Keeps some reservations open, as live requests do."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._open: list[Reservation] = []
        self.hash_us: list[float] = []
        self.route_us: list[float] = []
        self.release_us: list[float] = []

    def decide(self, prompt: Prompt) -> None:
        """Take one decision."""
        began_ns = time.thread_time_ns()
        keys = prefix_keys(prompt, "")
        hashed_ns = time.thread_time_ns()
        request = RoutingRequest(PROMPT_TOKENS, 500, prefix_keys=keys, model="model")
        self._open.append(self._world.router.reserve(GROUPS, request))
        reserved_ns = time.thread_time_ns()
        self.hash_us.append((hashed_ns - began_ns) / 1000)
        self.route_us.append((reserved_ns - hashed_ns) / 1000)
        if len(self._open) > NUM_OPEN:
            self._end_oldest()

    def figures(self) -> dict[str, object]:
        """Return microseconds of processor time of the parts and of all a decision takes."""
        decision_us = [hash_us + route_us for hash_us, route_us in zip(self.hash_us, self.route_us, strict=True)]
        return {
            "decision_us": summary(decision_us, 1),
            "hash_us": summary(self.hash_us, 1),
            "look_up_score_reserve_us": summary(self.route_us, 1),
            "release_us": summary(self.release_us, 1),
            "decisions_per_s": round(1e6 / float(np.mean(decision_us))),
        }

    def _end_oldest(self) -> None:
        reservation = self._open.pop(0)
        began_ns = time.thread_time_ns()
        reservation.progress(1)
        reservation.release()
        self.release_us.append((time.thread_time_ns() - began_ns) / 1000)


def measure_decisions(world: World, num_decisions: int) -> dict[str, object]:
    """Return what decisions cost, by kind of prompt."""
    prompts: dict[str, Callable[[], Prompt]] = {
        "nobody_has_it": world.prompt,
        "one_group_has_most_of_it": lambda: world.continued(world.rng.choice(world.cached)),
        "all_groups_have_the_same_half": lambda: world.continued(world.shared),
        "all_groups_have_different_parts": lambda: world.continued(world.uneven),
    }
    figures: dict[str, object] = {}
    for kind, make_prompt in prompts.items():
        decider = Decider(world)
        for number in range(num_decisions):
            if number % 20 == 0:
                world.report()
            decider.decide(make_prompt())
        figures[kind] = decider.figures()
    return figures


def measure_news(world: World, num_rounds: int) -> dict[str, object]:
    """Return microseconds an item of news costs: a span that a group has stored, or one that it has evicted."""
    stored_us, removed_us = [], []
    for number in range(1, num_rounds + 1):
        keys = prefix_keys(world.prompt(), "")
        stored_us.append(_news_us(world, PrefixNews(1, 2 * number - 1, False, keys, [])))
        removed_us.append(_news_us(world, PrefixNews(1, 2 * number, False, [], keys[::-1])))
    return {"stored_us_per_key": summary(stored_us, 3), "removed_us_per_key": summary(removed_us, 3)}


def measure_memory(num_keys: int) -> dict[str, object]:
    """Return bytes that a key takes in the index, key included; each known to one to four groups of 64."""
    rng = Random(11)
    tracemalloc.start()
    index = PrefixIndex(max_keys=4 * num_keys)
    for number in range(NUM_GROUPS):
        index.apply(GROUPS[number], PrefixNews(1, 0, True, [], []))
    before = tracemalloc.get_traced_memory()[0]
    sequences = [0] * NUM_GROUPS
    for keys in _chains(rng, num_keys):
        for number in rng.sample(range(NUM_GROUPS), rng.choice((1, 1, 1, 4))):
            sequences[number] += 1
            index.apply(GROUPS[number], PrefixNews(1, sequences[number], False, keys, []))
    num_bytes = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return {"keys": len(index), "bytes_per_key": round(num_bytes / len(index), 1)}


def _chains(rng: Random, num_keys: int) -> Iterator[list[int]]:
    for _ in range(num_keys // NUM_SPANS):
        yield [rng.getrandbits(64) for _ in range(NUM_SPANS)]


def _news_us(world: World, news: PrefixNews) -> float:
    began_ns = time.thread_time_ns()
    is_understood = world.router.note_prefixes(GROUPS[0], news)
    elapsed_ns = time.thread_time_ns() - began_ns
    assert is_understood
    return elapsed_ns / 1000 / NUM_SPANS


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write the results file."""
    parser = argparse.ArgumentParser(description="What a routing decision costs.")
    parser.add_argument("--keys", type=int, default=NUM_KEYS, help="in the index")
    parser.add_argument("--decisions", type=int, default=5000, help="of each kind of prompt")
    parser.add_argument("--save", action="store_true", help="write a results file")
    options = parser.parse_args(arguments)
    started_at = datetime.now(UTC)
    memory = measure_memory(options.keys)
    world = World(options.keys)
    world.fill()
    figures: dict[str, object] = {
        "workload": {"groups": NUM_GROUPS, "keys": len(world.index), "prompt_tokens": PROMPT_TOKENS},
        "memory": memory,
        "decisions": measure_decisions(world, options.decisions),
        "news": measure_news(world, 2000),
    }
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    if options.save:
        sys.stdout.write(f"{shown(write_report('routing-decision', started_at, figures))}\n")


if __name__ == "__main__":
    main()
