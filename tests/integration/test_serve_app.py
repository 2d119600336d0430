"""The whole path on the real SmolLM2-135M: HTTP, gateway, token channel, replica groups, ranks in Ray actors."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ray import serve

from deployments import app
from deployments.config import MODEL_DEPLOYMENT, ModelArgs
from engine.engine import start_engine
from engine.tokenizer import Tokenizer
from parallel.checkpoint.source import resolve_checkpoint
from tests.support.engines import Collector, make_request, run_until_idle
from tests.support.raw_streams import RawStream
from tests.support.serve_instance import RANK_TITLE, REPLICA_TITLE, model_args

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
QUICK = "smollm2-135m"
TP2 = "smollm2-tp2"
NUM_STREAMS = 64


@pytest.fixture(scope="module")
def quick(served):
    """The quickstart's model."""
    served.deploy(QUICK, model_args("quickstart.yaml"))
    yield served
    served.delete(QUICK)


@pytest.fixture(scope="module")
def tp2(served):
    """Two groups of two ranks each."""
    served.deploy(TP2, model_args("tp2-two-replicas.yaml", name=TP2), num_replicas=2)
    yield served
    served.delete(TP2)


def text_of(stream):
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_the_official_client_is_told_that_the_capital_of_france_is_paris(quick):
    answer = quick.client().chat.completions.create(model=QUICK, messages=FRANCE, temperature=0, max_tokens=32)
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens > 0


def test_the_official_client_streams_the_same_answer(quick):
    client = quick.client()
    whole = client.chat.completions.create(model=QUICK, messages=FRANCE, temperature=0, max_tokens=32)
    stream = client.chat.completions.create(model=QUICK, messages=FRANCE, temperature=0, max_tokens=32, stream=True)
    assert text_of(stream) == whole.choices[0].message.content


def test_neither_gateway_nor_leader_loads_torch_and_a_rank_does(quick):
    def loads_torch(pid):
        return "libtorch" in Path(f"/proc/{pid}/maps").read_text()

    replicas, ranks = quick.processes(REPLICA_TITLE), quick.processes(RANK_TITLE)
    assert len(replicas) >= 2
    assert ranks
    assert not [pid for pid in replicas if loads_torch(pid)]
    assert all(loads_torch(pid) for pid in ranks)


@pytest.mark.skipif(os.geteuid() != 0, reason="lowering the niceness takes a right")
def test_what_computes_and_what_waits_for_it_runs_at_normal_priority_though_ray_starts_it_at_15(quick):
    processes = quick.processes(REPLICA_TITLE) | quick.processes(RANK_TITLE)
    threads = [thread for pid in processes for thread in Path(f"/proc/{pid}/task").iterdir()]
    assert {os.getpriority(os.PRIO_PROCESS, int(thread.name)) for thread in threads} == {0}


def test_a_model_that_cannot_be_split_fails_with_its_reason_and_the_others_go_on(quick):
    args = ModelArgs.parse(model_args("quickstart.yaml", name="bad", parallel={"tensor_parallel_size": 5}), "test")
    with pytest.raises(RuntimeError):
        serve.run(app.model(args), name="bad", route_prefix=None)
    bad = serve.status().applications["bad"]
    serve.delete("bad")
    assert bad.status == "DEPLOY_FAILED"
    assert "core.errors.Unshardable: " in bad.deployments[MODEL_DEPLOYMENT].message
    assert "num_key_value_heads=3" in bad.deployments[MODEL_DEPLOYMENT].message
    assert quick.is_ready(QUICK)


def test_ranks_that_fit_nowhere_fail_with_what_was_asked_and_what_there_is(quick):
    placement = {"cpus_per_rank": 1000, "timeout_s": 1}
    args = ModelArgs.parse(model_args("quickstart.yaml", name="huge", placement=placement), "test")
    with pytest.raises(RuntimeError):
        serve.run(app.model(args), name="huge", route_prefix=None)
    message = serve.status().applications["huge"].deployments[MODEL_DEPLOYMENT].message
    serve.delete("huge")
    assert "core.errors.PlacementImpossible: no room for the ranks after 1 s" in message
    assert "1 ranks x (CPU 1000); the cluster has CPU" in message


def test_many_concurrent_streams_finish_and_both_groups_serve_them(tp2):
    client = tp2.client()
    before = tp2.metric("vllm:generation_tokens_total", TP2)

    def stream(index):
        messages = [{"role": "user", "content": f"Count from {index} to {index + 5}."}]
        events = client.chat.completions.create(model=TP2, messages=messages, temperature=0, max_tokens=12, stream=True)
        return [chunk.choices[0].finish_reason for chunk in events if chunk.choices][-1]

    with ThreadPoolExecutor(NUM_STREAMS) as threads:
        reasons = list(threads.map(stream, range(NUM_STREAMS)))
    assert set(reasons) <= {"stop", "length"}
    after = tp2.metric("vllm:generation_tokens_total", TP2)
    assert len(after) == 2
    assert all(after[group] > before.get(group, 0) for group in after)


def test_greedy_text_is_the_same_from_both_groups_and_from_a_bare_engine(tp2):
    prompts = [f"The number after {number} is" for number in range(5)]
    client = tp2.client()

    def complete(prompt):
        answer = client.completions.create(model=TP2, prompt=prompt, temperature=0, max_tokens=8)
        return answer.choices[0].text

    with ThreadPoolExecutor(len(prompts)) as threads:
        texts = list(threads.map(complete, prompts))
    # In parallel they land on either group; one after the other, on whichever is less busy.
    assert [complete(prompt) for prompt in prompts] == texts
    assert texts == reference_texts(prompts, max_tokens=8)


def test_an_open_stream_outlives_the_command_to_delete_its_model(quick):
    stream = RawStream(quick.url, QUICK, max_tokens=40)
    assert stream.has_begun.wait(30)
    quick.delete(QUICK)
    end = stream.wait(30)
    assert end.transport_error is None
    assert end.error_code is None
    assert end.is_done
    assert end.events[-1]["choices"][0]["finish_reason"] == "length"
    assert not quick.processes(f"{REPLICA_TITLE}{QUICK}:")


def reference_texts(prompts, max_tokens):
    """Return what the engine generates without Ray, on one rank in this process."""
    # Imported here: it loads torch, which test collection need not.
    from engine.rank_pools.solo import SoloRankPool

    args = ModelArgs.parse(model_args("tp2-two-replicas.yaml", parallel={"tensor_parallel_size": 1}), "test").engine
    tokenizer = Tokenizer.load(resolve_checkpoint(args.model.source, None))
    ranks = SoloRankPool()
    try:
        engine = start_engine(args, ranks, lambda progress: None)
        events = Collector()
        for prompt in prompts:
            engine.submit(make_request(prompt, tokenizer.encode(prompt), max_tokens, temperature=0), events)
        run_until_idle(engine)
    finally:
        ranks.close()
    return [tokenizer.decode(events.tokens(prompt)) for prompt in prompts]
