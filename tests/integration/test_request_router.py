"""Our router inside Serve's handles: red if Serve's interface for routers has changed, or prompts do not find back."""

import os

import pytest
from ray import serve
from ray.serve.config import RequestRouterConfig

pytestmark = pytest.mark.integration

NAME = "parrots"
BEGINNING = "An instruction that all requests of one application begin with. " * 40


@pytest.fixture(scope="module")
def handle(served):
    class Parrot:
        """Says who it is, whatever it is told."""

        def __call__(self, request: dict) -> int:
            return os.getpid()

    config = RequestRouterConfig.model_validate(
        {"request_router_class": "deployments.request_router:CostRequestRouter"}
    )
    deployment = serve.deployment(
        num_replicas=2, request_router_config=config, ray_actor_options={"num_cpus": 0}, max_ongoing_requests=10
    )(Parrot)
    yield serve.run(deployment.bind(), name=NAME, route_prefix=None)
    serve.delete(NAME)


def test_calls_with_one_beginning_go_to_one_replica_and_others_spread(handle):
    alike = {handle.remote({"prompt": f"{BEGINNING}{number}"}).result(timeout_s=30) for number in range(8)}
    assert len(alike) == 1
    unlike = {handle.remote({"prompt": f"{number}" * 3000}).result(timeout_s=30) for number in range(8)}
    assert len(unlike) == 2
