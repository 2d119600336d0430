"""In any order of events: no block is lost or wrongly shared, everything ends once, and tokens never change.

The fake ranks compute each next token from the KV slots of all tokens before it, so a block that is freed too early,
shared wrongly or found under a wrong hash shows as an AssertionError or as other tokens than an undisturbed run gives.
"""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from core.errors import QueueFull, RankDied
from tests.support.engines import Collector, make_config, make_engine, make_request, tiny_spec
from tests.support.fake_clock import FakeClock
from tests.support.fake_ranks import FakeRankPool, expected_tokens

VOCAB_SIZE = 50
EOS = 7
BLOCK_SIZE = 8
MAX_MODEL_LEN = 64


REQUESTS = st.tuples(
    st.integers(0, 2),
    st.sampled_from([0, 0, 8, 16, 20]),
    st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=6),
    st.sampled_from([0, 0, 0, 3]),
    st.sampled_from([2, 20, 30, 36]),
    st.fixed_dictionaries(
        {
            "priority": st.integers(0, 1),
            "deadline_s": st.sampled_from([None, None, None, 30.0]),
            "ignore_eos": st.sampled_from([True, True, False]),
            "cache_salt": st.sampled_from(["", "", "tenant"]),
        }
    ),
)
"""Which prefix, how much of it, what follows, how many tokens were emitted before, max_tokens, the rest."""


def undisturbed(request):
    """The visible output of the request alone, from where it was resumed."""
    num_left = request.num_prompt_tokens + request.sampling.max_tokens - len(request.token_ids)
    tokens = expected_tokens(request.token_ids, num_left, VOCAB_SIZE)
    if EOS in tokens and not request.sampling.ignore_eos:
        tokens = tokens[: tokens.index(EOS)]
    return tokens


class EngineMachine(RuleBasedStateMachine):
    @initialize(
        num_blocks=st.integers(8, 10),
        max_running=st.sampled_from([2, 4, 8]),
        max_step_tokens=st.integers(8, 40),
        max_prefill_chunk=st.sampled_from([1, 5, 8, 40]),
        max_steps_under_way=st.sampled_from([1, 2]),
        prefix_caching=st.sampled_from([True, True, False]),
    )
    def start(self, num_blocks, prefix_caching, **scheduler):
        self.clock = FakeClock()
        self.ranks = FakeRankPool(vocab_size=VOCAB_SIZE)
        config = make_config(
            scheduler={"max_wait_s": 86400, **scheduler},
            cache={"prefix_caching": prefix_caching},
            model={"source": "x", "max_model_len": MAX_MODEL_LEN},
        )
        spec = tiny_spec(vocab_size=VOCAB_SIZE, eos_token_ids=(EOS,))
        self.engine = make_engine(self.ranks, num_blocks, config, spec, self.clock)
        self.sink = Collector()
        self.requests = {}
        self.undisturbed = {}
        self.cancelled = set()

    @rule(requests=st.lists(REQUESTS, min_size=1, max_size=6))
    def submit(self, requests):
        for prefix, prefix_length, tail, num_emitted, max_tokens, options in requests:
            prompt = [(prefix * 17 + index) % VOCAB_SIZE for index in range(prefix_length)] + tail
            num_emitted = min(num_emitted, max_tokens - 1)
            self.send(prompt, expected_tokens(prompt, num_emitted, VOCAB_SIZE), max_tokens, **options)

    @precondition(lambda self: self.requests)
    @rule(
        data=st.data(),
        length=st.sampled_from([8, 16, 24, MAX_MODEL_LEN]),
        salt=st.sampled_from(["", "tenant"]),
        max_tokens=st.integers(1, 10),
    )
    def submit_again(self, data, length, salt, max_tokens):
        """The same prompt once more, a part of it, or the next turn of its conversation."""
        earlier = self.requests[data.draw(st.sampled_from(sorted(self.requests)))]
        prompt = earlier.token_ids + self.sink.tokens(earlier.request_id)
        self.send(prompt[: min(length, MAX_MODEL_LEN - max_tokens)], [], max_tokens, cache_salt=salt)

    def send(self, prompt, emitted, max_tokens, **options):
        name = f"r{len(self.requests)}"
        request = make_request(name, prompt + emitted, max_tokens, num_prompt_tokens=len(prompt), **options)
        try:
            self.engine.submit(request, self.sink)
        except QueueFull:
            # Others have waited longer already than this one has time.
            assert request.deadline_s is not None
            return
        self.requests[name] = request
        self.undisturbed[name] = undisturbed(request)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel(self, data):
        name = data.draw(st.sampled_from(sorted(self.requests)))
        self.engine.cancel(name)
        self.cancelled.add(name)

    @rule(count=st.integers(1, 20))
    def step(self, count):
        for _ in range(count):
            self.engine.step()
            self.check_blocks()

    @rule(seconds=st.sampled_from([0.5, 20.0]))
    def wait(self, seconds):
        self.clock.advance(seconds)

    @rule()
    def finish_everything(self):
        """Progress: the work left bounds the steps, even when requests preempt each other all the time."""
        left = self.engine.load()
        # A step gives the first request in order at least one token. Each request may have to be computed again.
        most = 10 + left.num_outstanding_tokens * (1 + left.num_running + left.num_waiting)
        for _ in range(most):
            if not self.engine.step():
                break
            self.check_blocks()
        else:
            raise AssertionError(f"still busy after {most} steps: {self.engine.load()}")
        assert self.sink.ended.keys() == self.requests.keys()
        load = self.engine.load()
        assert load.num_free_blocks + load.num_cached_blocks == load.num_blocks
        assert (load.num_running, load.num_waiting, load.num_outstanding_tokens) == (0, 0, 0)
        assert (load.num_uncached_tokens, load.num_kv_tokens) == (0, 0)

    @invariant()
    def every_token_is_the_one_an_undisturbed_run_gives(self):
        for name, request in getattr(self, "requests", {}).items():
            tokens, ended = self.sink.tokens(name), self.sink.ended.get(name)
            wanted = self.undisturbed[name]
            assert tokens == wanted[: len(tokens)]
            if ended is None or ended.finish_reason == "cancelled":
                assert ended is None or name in self.cancelled
            elif ended.error is not None:
                assert ended.error.code == "deadline_exceeded"
                assert request.deadline_s is not None
            else:
                assert tokens == wanted
                assert ended.finish_reason == ("length" if ended.stop_token_id is None else "stop")

    def check_blocks(self):
        pool, running = self.engine._pool, self.engine._scheduler.running
        pool.check_integrity()
        assert pool.num_free + pool.num_referenced + pool.num_cached == pool.num_blocks
        assert pool.num_referenced == len({block for stay in running for block in stay.blocks})
        assert self.engine._scheduler.num_computed_tokens == sum(stay.num_computed_tokens for stay in running)
        assert [stay.live.order for stay in running] == sorted(stay.live.order for stay in running)
        users = {}
        for stay in running:
            assert len(set(stay.blocks)) == len(stay.blocks)
            for index, block in enumerate(stay.blocks):
                users.setdefault(block, []).append((index, stay))
        for shared in users.values():
            # A shared block is full, and everything up to its end is the same for all that share it.
            ends = {(index + 1) * BLOCK_SIZE for index, _ in shared}
            assert len(shared) == 1 or len(ends) == 1
            for end in ends if len(shared) > 1 else ():
                assert all(stay.num_computed_tokens >= end for _, stay in shared)
                assert (
                    len({(tuple(stay.live.token_ids[:end]), stay.live.request.cache_salt) for _, stay in shared}) == 1
                )

    def teardown(self):
        if hasattr(self, "engine"):
            self.engine.close(RankDied("the test is over"))
            assert self.sink.ended.keys() == self.requests.keys()


EngineMachine.TestCase.settings = settings(
    max_examples=200,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestEngineMachine = EngineMachine.TestCase
