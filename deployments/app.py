"""What a Serve config names as `import_path`: `deployments.app:gateway` and `deployments.app:model`.

One application per model version, because a change of `args` restarts every deployment of its application.
"""

from ray import serve
from ray.serve import Application, Deployment

from deployments.config import GATEWAY_OPTIONS, MODEL_OPTIONS, ModelArgs
from deployments.gateway.config import GatewayConfig
from deployments.gateway.replica import GatewayReplica
from deployments.model_replica import ModelReplica


def gateway(args: GatewayConfig) -> Application:
    """Return the application that speaks HTTP; its `route_prefix` is `/`."""
    return gateway_deployment().bind(args)


def model(args: ModelArgs) -> Application:
    """Return the application of one model version; `route_prefix: null`, gateways reach it by the token channel."""
    return model_deployment().bind(args)


def gateway_deployment() -> Deployment:
    """Return the gateway with our defaults."""
    return serve.deployment(**GATEWAY_OPTIONS)(serve.ingress()(GatewayReplica))


def model_deployment() -> Deployment:
    """Return the replica group with our defaults."""
    return serve.deployment(**MODEL_OPTIONS)(ModelReplica)
