"""The applications of a Serve config, built in this process.

Ray would build each in a task, in a worker that imports Serve for it and ends: a fifth of the work of a start.
"""

from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import gRPCOptions
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

from core.config import read_yaml
from core.errors import InvalidConfig
from deployments.app import gateway_deployment, model_deployment
from deployments.check import BUILDERS, check_config
from deployments.tracing.exporter import EXPORTER, TracingUnavailable, require_exporter

_DEPLOYMENTS: dict[str, Callable[[], Deployment]] = {
    "deployments.app:gateway": gateway_deployment,
    "deployments.app:model": model_deployment,
}
_CONFIG_KEYS = {"proxy_location", "http_options", "grpc_options", "logging_config", "tracing_config", "applications"}
_APPLICATION_KEYS = {"name", "route_prefix", "import_path", "args", "deployments", "logging_config"}


class OnlyRayCan(Exception):
    """A config asks for something that is left to Ray's own `serve run`; the message says what."""


def read_config(path: Path) -> ServeDeploySchema:
    """Return a sound Serve config. Raises InvalidConfig with every problem of the file."""
    data = read_yaml(path)
    if problems := check_config(data):
        raise InvalidConfig("\n".join(f"{path}: {problem}" for problem in problems))
    config = ServeDeploySchema.model_validate(data)
    _check_tracing(config, path)
    return config


def deploy(config: ServeDeploySchema) -> None:
    """Start Serve and hand it every application; returns before they run. Ray runs already. Raises OnlyRayCan."""
    _refuse_others(config, _CONFIG_KEYS)
    targets = [_target(application, config) for application in config.applications]
    serve.start(
        proxy_location=config.proxy_location,
        http_options=config.http_options.model_dump(),
        grpc_options=gRPCOptions(**config.grpc_options.model_dump()),
        logging_config=config.logging_config,
        tracing_config=config.tracing_config,
    )
    serve.run_many(targets, wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def build(application: ServeApplicationSchema) -> Application:
    """Return an application with the overrides of its `deployments`. Raises OnlyRayCan."""
    _refuse_others(application, _APPLICATION_KEYS)
    make = _DEPLOYMENTS.get(application.import_path)
    if make is None:
        raise OnlyRayCan(f"{application.import_path} is none of {', '.join(_DEPLOYMENTS)}")
    deployment = make()
    for overrides in application.deployments:
        deployment = deployment.options(**overrides.model_dump(exclude_unset=True, exclude={"name"}))
    return deployment.bind(BUILDERS[application.import_path].args.model_validate(application.args))


def _target(application: ServeApplicationSchema, config: ServeDeploySchema) -> serve.RunTarget:
    return serve.RunTarget(
        build(application),
        name=application.name,
        route_prefix=application.route_prefix,
        logging_config=application.logging_config or config.logging_config,
    )


def _check_tracing(config: ServeDeploySchema, path: Path) -> None:
    """Raise InvalidConfig if spans are to be exported by a package that is not there; in a proxy nobody would see."""
    tracing = config.tracing_config
    if tracing is None or not tracing.enabled or tracing.exporter_import_path != EXPORTER:
        return
    try:
        require_exporter()
    except TracingUnavailable as error:
        raise InvalidConfig(f"{path}: {error.message}") from None


def _refuse_others(settings: BaseModel, known: set[str]) -> None:
    if others := settings.model_fields_set - known:
        raise OnlyRayCan(f"{', '.join(sorted(others))} is set")
