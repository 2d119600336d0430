"""What a Serve config says, as far as the doctor needs it: typed where it is sound, left out where it is not.

No Ray: a config is judged also where Ray cannot be loaded, but for what `deployments.check` alone knows.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from core.config import read_yaml
from deployments.config import GATEWAY_OPTIONS, MODEL_OPTIONS, ModelArgs
from deployments.gateway.config import GatewayConfig

GATEWAY_PATH = "deployments.app:gateway"
MODEL_PATH = "deployments.app:model"
_SERVE_PORT = 8000


@dataclass(frozen=True)
class Copies:
    """How many replicas a deployment may have, and what Ray reserves for each itself."""

    least: int
    most: int
    """The same unless it scales."""
    cpus: float
    gpus: float


@dataclass(frozen=True)
class ModelApplication:
    """One model application that is sound."""

    application: str
    args: ModelArgs
    copies: Copies


@dataclass(frozen=True)
class GatewayApplication:
    """One gateway application that is sound."""

    application: str
    args: GatewayConfig
    copies: Copies


@dataclass(frozen=True)
class ServeConfig:
    """What is served, and where."""

    host: str | None
    """None: Serve's default, which is every address."""
    port: int
    request_timeout_s: float | None
    gateways: tuple[GatewayApplication, ...]
    models: tuple[ModelApplication, ...]


def read(path: Path) -> ServeConfig:
    """Return the sound part of a config. Raises InvalidConfig if it cannot be read at all."""
    data = read_yaml(path)
    options = _mapping(data.get("http_options"))
    gateways: list[GatewayApplication] = []
    models: list[ModelApplication] = []
    for application in data.get("applications") or []:
        if not isinstance(application, dict):
            continue
        name, args = str(application.get("name")), application.get("args", {})
        try:
            if application.get("import_path") == GATEWAY_PATH:
                gateways.append(GatewayApplication(name, GatewayConfig.model_validate(args), _copies(application)))
            elif application.get("import_path") == MODEL_PATH:
                models.append(ModelApplication(name, ModelArgs.model_validate(args), _copies(application)))
        except (ValidationError, TypeError, ValueError):
            continue  # `deployments.check` says what is wrong with it
    port = options.get("port", _SERVE_PORT)
    return ServeConfig(
        host=options.get("host"),
        port=port if isinstance(port, int) else _SERVE_PORT,
        request_timeout_s=options.get("request_timeout_s"),
        gateways=tuple(gateways),
        models=tuple(models),
    )


def _copies(application: dict[str, Any]) -> Copies:
    is_gateway = application.get("import_path") == GATEWAY_PATH
    defaults = GATEWAY_OPTIONS if is_gateway else MODEL_OPTIONS
    deployment: dict[str, Any] = {}
    for candidate in application.get("deployments") or []:
        if _mapping(candidate).get("name") == defaults["name"]:
            deployment = candidate
    actor = _mapping(defaults["ray_actor_options"]) | _mapping(deployment.get("ray_actor_options"))
    cpus, gpus = float(actor.get("num_cpus", 1)), float(actor.get("num_gpus", 0))
    scaling = _mapping(deployment.get("autoscaling_config"))
    if scaling:
        return Copies(int(scaling.get("min_replicas", 1)), int(scaling.get("max_replicas", 1)), cpus, gpus)
    number = deployment.get("num_replicas", 1)
    # "auto" is Serve's own scaling, which `deployments.check` refuses for models.
    number = number if isinstance(number, int) else 1
    return Copies(number, number, cpus, gpus)


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
