"""Engines over a FakeRankPool, and what a test needs to talk to them."""

from collections import defaultdict
from collections.abc import Sequence

from core.clock import Clock
from engine.config import EngineConfig, ModelConfig
from engine.engine import Engine
from engine.prefix_feed import PrefixFeed
from engine.request import GenerationRequest, StepEvents, TokenEvent
from parallel.models.spec import ModelSpec, RopeSpec
from parallel.rank.messages import Load
from parallel.sampling.params import SamplingParams
from tests.support.fake_ranks import FakeRankPool


def tiny_spec(**changes) -> ModelSpec:
    sizes = {
        "architecture": "LlamaForCausalLM",
        "hidden_size": 64,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "intermediate_size": 128,
        "vocab_size": 1000,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope": RopeSpec(),
        "tie_word_embeddings": True,
        "qkv_bias": False,
        "o_bias": False,
        "mlp_bias": False,
        "qk_norm": False,
        "sliding_window": None,
        "dtype": "float32",
        "bos_token_id": None,
        "eos_token_ids": (),
    }
    return ModelSpec(**(sizes | changes))


def make_config(**sections) -> EngineConfig:
    """`make_config(scheduler={...}, cache={...})`; blocks have 8 tokens unless said otherwise."""
    sections["cache"] = {"block_size": 8} | sections.get("cache", {})
    return EngineConfig.parse({"model": ModelConfig(source="fake")} | sections, "test")


def make_engine(
    ranks: FakeRankPool,
    num_blocks: int = 64,
    config: EngineConfig | None = None,
    spec: ModelSpec | None = None,
    clock: Clock | None = None,
    prefix_feed: PrefixFeed | None = None,
) -> Engine:
    config, spec = config or make_config(), spec or tiny_spec(vocab_size=ranks.vocab_size)
    ranks.join(lambda progress: None)
    ranks.load(
        Load(
            model="fake",
            revision=None,
            dtype="float32",
            kv_dtype="float32",
            num_blocks=num_blocks,
            block_size=config.cache.block_size,
            max_rows=config.scheduler.max_running,
            max_model_len=config.model.max_model_len or spec.max_context,
            max_step_tokens=config.scheduler.step_tokens,
        ),
        lambda progress: None,
    )
    return Engine(config, spec, ranks, num_blocks, clock, prefix_feed)


def make_request(
    request_id: str,
    token_ids: Sequence[int],
    max_tokens: int = 4,
    *,
    num_prompt_tokens: int | None = None,
    priority: int = 0,
    deadline_s: float | None = None,
    waited_s: float = 0.0,
    cache_salt: str = "",
    **sampling,
) -> GenerationRequest:
    return GenerationRequest(
        request_id=request_id,
        token_ids=list(token_ids),
        num_prompt_tokens=len(token_ids) if num_prompt_tokens is None else num_prompt_tokens,
        sampling=SamplingParams(max_tokens=max_tokens, seed=sampling.pop("seed", 0), **sampling),
        priority=priority,
        deadline_s=deadline_s,
        waited_s=waited_s,
        cache_salt=cache_salt,
    )


class Collector:
    """An event sink that checks the rule of exactly one terminal event."""

    def __init__(self) -> None:
        self.calls: list[list[TokenEvent]] = []
        self.events: dict[str, list[TokenEvent]] = defaultdict(list)
        self.ended: dict[str, TokenEvent] = {}
        """Terminal events, in the order they came."""

    def __call__(self, events: StepEvents) -> None:
        self.calls.append(list(events))
        for event in events:
            assert event.request_id not in self.ended, f"{event.request_id} got an event after its terminal one"
            self.events[event.request_id].append(event)
            if event.is_terminal:
                self.ended[event.request_id] = event

    def tokens(self, request_id: str) -> list[int]:
        return [token for event in self.events[request_id] for token in event.token_ids]


def run_until_idle(engine: Engine, max_steps: int = 10_000) -> int:
    """Step until nothing is left to do; return the number of steps. Fails instead of looping for ever."""
    for num_steps in range(max_steps):
        if not engine.step():
            return num_steps
    raise AssertionError(f"the engine is still busy after {max_steps} steps")
