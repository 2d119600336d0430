"""A deployment gets a second group under load and gives it back afterwards, by Serve's own controller."""

import threading

import pytest
from openai import OpenAIError
from ray import serve

from deployments.config import MODEL_OPTIONS, ModelArgs
from deployments.model_replica import ModelReplica
from tests.support.serve_instance import READY_TIMEOUT_S, model_args, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

NAME = "smollm2-scaled"
SCALING = {
    "min_replicas": 1,
    "max_replicas": 2,
    "upscale_delay_s": 0,
    "downscale_delay_s": 0,
    "metrics_interval_s": 0.5,
    "look_back_period_s": 2,
    "policy": {
        "policy_function": "cluster.autoscaling.serve_policy:TokenWorkPolicy",
        "policy_kwargs": {"target_load": 0.3, "growth_period_s": 1, "down_after_s": 3, "down_period_s": 1},
    },
}


@pytest.fixture(scope="module")
def scaled(served):
    """One group, which may become two."""
    args = model_args("autoscaling.yaml", name=NAME, parallel={"threads_per_rank": 1}, drain_timeout_s=5)
    deployment = serve.deployment(**MODEL_OPTIONS, autoscaling_config=SCALING)(ModelReplica)
    serve.run(deployment.bind(ModelArgs.parse(args, "test")), name=NAME, route_prefix=None)
    wait_until(lambda: served.is_ready(NAME), READY_TIMEOUT_S, f"{NAME} ready")
    yield served
    served.delete(NAME)


def ready_groups(instance):
    return sum(group["state"] == "ready" for group in instance.groups(NAME))


def test_groups_come_with_the_work_and_go_with_it(scaled):
    assert ready_groups(scaled) == 1
    is_over, failures = threading.Event(), []

    def keep_asking(index):
        client = scaled.client()
        while not is_over.is_set():
            try:
                prompt = f"{index}. Tell me a long story."
                client.completions.create(model=NAME, prompt=prompt, max_tokens=64, extra_body={"ignore_eos": True})
            except OpenAIError as error:
                failures.append(error)
                return

    callers = [threading.Thread(target=keep_asking, args=(index,)) for index in range(16)]
    for caller in callers:
        caller.start()
    try:
        wait_until(lambda: ready_groups(scaled) == 2, 90, "a second group under load")
    finally:
        is_over.set()
        for caller in callers:
            caller.join()
    assert not failures
    wait_until(lambda: ready_groups(scaled) == 1, 90, "one group after it")
