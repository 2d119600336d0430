"""`python -m deployments.check configs/*.yaml`: refuses what Serve would silently ignore.

Serve's own YAML schema drops unknown keys without a word, so a typo changes nothing until production does. Here every
key at every level must be known, `args` and `user_config` must fit our typed models, and what has a dangerous default
must be set. One line per problem, `file: path: message`; exit code 2 if there is one.
"""

import contextlib
import ipaddress
import sys
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from ray.serve.schema import DeploymentSchema, ServeApplicationSchema, ServeDeploySchema

from cluster.autoscaling.policy import ScalingConfig
from core.config import Config, read_yaml
from core.errors import InvalidConfig
from deployments.config import GATEWAY_DEPLOYMENT, MODEL_DEPLOYMENT, MODEL_OPTIONS, ModelArgs
from deployments.gateway.config import GatewayConfig

EXIT_PROBLEMS = 2
HAND_OVER_S = 5.0
"""What a group needs beside its drain time: two seconds until Serve tells it to drain, a step, the end of its ranks."""
SCALING_POLICY = "cluster.autoscaling.serve_policy:TokenWorkPolicy"
"""What `autoscaling_config.policy.policy_function` must be for a model."""


class Builder(NamedTuple):
    """What is behind one `import_path` of ours."""

    args: type[Config]
    deployment: str


GATEWAY_PATH = "deployments.app:gateway"
BUILDERS: dict[str, Builder] = {
    GATEWAY_PATH: Builder(GatewayConfig, GATEWAY_DEPLOYMENT),
    "deployments.app:model": Builder(ModelArgs, MODEL_DEPLOYMENT),
}


def main(paths: list[str]) -> int:
    """Write every problem of every file to stderr; return the exit code."""
    if not paths:
        sys.stderr.write("usage: python -m deployments.check CONFIG...\n")
        return EXIT_PROBLEMS
    problems = [f"{path}: {problem}" for path in paths for problem in check_file(Path(path))]
    for problem in problems:
        sys.stderr.write(problem + "\n")
    return EXIT_PROBLEMS if problems else 0


def check_file(path: Path) -> list[str]:
    """Return the problems of one Serve config, `path: message` each; empty when it is sound."""
    try:
        return check_config(read_yaml(path))
    except InvalidConfig as error:
        return [error.message.removeprefix(f"{path}: ")]


def check_config(data: dict[str, Any]) -> list[str]:
    """Do the same for a config that is already read."""
    problems = list(_unknown_keys(data, ServeDeploySchema, ""))
    try:
        config = ServeDeploySchema.model_validate(data)
    except ValidationError as error:
        return [*problems, *_validation_problems(error, "")]
    problems += _unset_dangers(data)
    for index, application in enumerate(config.applications):
        problems += _application_problems(application, f"applications.{index}")
    return [*problems, *_open_doors(config), *_cross_references(config)]


def _unknown_keys(data: object, schema: Any, path: str) -> Iterator[str]:
    """Yield a problem for each key under `data` that the pydantic model in the annotation `schema` does not have."""
    if isinstance(data, list):
        for index, item in enumerate(data):
            for item_schema in get_args(schema):
                yield from _unknown_keys(item, item_schema, f"{path}.{index}")
        return
    model = _model_in(schema)
    if model is None or not isinstance(data, dict):
        return
    for key, value in data.items():
        here = f"{path}.{key}".lstrip(".")
        field = model.model_fields.get(key)
        if field is None:
            yield f"{here}: unknown key; {model.__name__} knows {', '.join(sorted(model.model_fields))}"
        else:
            yield from _unknown_keys(value, _list_in(field.annotation), here)


def _validation_problems(error: ValidationError, prefix: str) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        path = ".".join(str(part) for part in problem["loc"])
        shown = repr(problem["input"])
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        yield f"{(prefix + path).strip('.') or '(top level)'}: {problem['msg']} (got {shown})"


def _model_in(schema: Any) -> type[BaseModel] | None:
    """Return the first pydantic model among the alternatives of an annotation."""
    for alternative in _alternatives(schema):
        if isinstance(alternative, type) and issubclass(alternative, BaseModel):
            return alternative
    return None


def _list_in(schema: Any) -> Any:
    """Return the `list[...]` among the alternatives of an annotation, else the annotation itself."""
    return next((item for item in _alternatives(schema) if get_origin(item) is list), schema)


def _alternatives(schema: Any) -> tuple[Any, ...]:
    return get_args(schema) if get_origin(schema) in (Union, UnionType) else (schema,)


def _unset_dangers(data: dict[str, Any]) -> Iterator[str]:
    if not data["applications"]:
        yield "applications: no application is deployed by this file"
    if data.get("http_options", {}).get("request_timeout_s") is None:
        yield (
            "http_options.request_timeout_s: not set; without it a request to an application that cannot start "
            "hangs for ever, set it (600 is usual)"
        )


def _application_problems(application: ServeApplicationSchema, path: str) -> Iterator[str]:
    builder = BUILDERS.get(application.import_path)
    if builder is None:
        return
    try:
        args = builder.args.model_validate(application.args)
    except ValidationError as error:
        yield from _validation_problems(error, f"{path}.args.")
        return
    for index, deployment in enumerate(application.deployments):
        here = f"{path}.deployments.{index}"
        if deployment.name != builder.deployment:
            yield f"{here}.name: no deployment {deployment.name!r} in this application; use {builder.deployment}"
        if "user_config" in deployment.model_fields_set and deployment.user_config:
            yield f"{here}.user_config: {builder.deployment} has no live settings yet; move them to args"
    if isinstance(args, ModelArgs):
        yield from _model_problems(application, args, path)
        for index, deployment in enumerate(application.deployments):
            yield from _autoscaling_problems(deployment, f"{path}.deployments.{index}")


def _model_problems(application: ServeApplicationSchema, args: ModelArgs, path: str) -> Iterator[str]:
    if application.route_prefix is not None:
        yield f"{path}.route_prefix: a model has no HTTP route of its own; write `route_prefix: null`"
    grace_s = MODEL_OPTIONS["graceful_shutdown_timeout_s"]
    for deployment in application.deployments:
        if "graceful_shutdown_timeout_s" in deployment.model_fields_set:
            grace_s = deployment.graceful_shutdown_timeout_s
    if args.drain_timeout_s + HAND_OVER_S > grace_s:
        yield (
            f"{path}.args.drain_timeout_s: {args.drain_timeout_s:g} s and {HAND_OVER_S:g} s to hand streams over do "
            f"not fit graceful_shutdown_timeout_s={grace_s:g}; Serve would kill the group before its streams end"
        )


def _autoscaling_problems(deployment: DeploymentSchema, path: str) -> Iterator[str]:
    """Yield what would have Serve scale a model by anything but its work, or the policy not be what it says it is."""
    settings = deployment.autoscaling_config
    if not isinstance(settings, dict):
        return
    here, policy = f"{path}.autoscaling_config", settings.get("policy", {})
    if policy.get("policy_function") != SCALING_POLICY:
        yield (
            f"{here}.policy: requests come by the token channel, so Serve counts none and would never add a group; "
            f"use `policy_function: {SCALING_POLICY}`"
        )
        return
    try:
        scaling = ScalingConfig.model_validate(policy.get("policy_kwargs", {}))
    except ValidationError as error:
        yield from _validation_problems(error, f"{here}.policy.policy_kwargs.")
        return
    for name in ("upscale_delay_s", "downscale_delay_s"):
        if settings.get(name) != 0:
            yield f"{here}.{name}: set it to 0; the policy has delays of its own, and Serve's would come on top"
    if scaling.to_zero_after_s is not None and settings.get("min_replicas") != 0:
        yield f"{here}.min_replicas: `to_zero_after_s` is set; without `min_replicas: 0` it has no effect"


def _open_doors(config: ServeDeploySchema) -> Iterator[str]:
    """Yield a problem for each gateway that would answer other machines without asking for a key."""
    host = config.http_options.host
    if _is_loopback(host):
        return
    for index, application in enumerate(config.applications):
        if application.import_path != GATEWAY_PATH:
            continue
        with contextlib.suppress(ValidationError):  # reported already
            gateway = GatewayConfig.model_validate(application.args)
            if not gateway.has_keys and not gateway.allow_anonymous:
                yield (
                    f"applications.{index}.args: there are no API keys, and http_options.host={host} lets other "
                    "machines in; make a key with `python -m deployments.keys new --name NAME`, set http_options.host: "
                    "127.0.0.1, or allow_anonymous: true if your network keeps everybody else out"
                )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _cross_references(config: ServeDeploySchema) -> Iterator[str]:
    gateways = {a.name for a in config.applications if a.import_path == GATEWAY_PATH}
    for index, application in enumerate(config.applications):
        if application.import_path != "deployments.app:model":
            continue
        wanted = application.args.get("gateway", ModelArgs.model_fields["gateway"].default)
        if wanted not in gateways:
            have = ", ".join(sorted(gateways)) or "none"
            yield f"applications.{index}.args.gateway: no gateway application {wanted!r} in this file; it has {have}"
    yield from _sleeping_problems(config)


def _sleeping_problems(config: ServeDeploySchema) -> Iterator[str]:
    """Yield models that can be scaled to zero and that no gateway would wake, and wakers of what is not there."""
    models = [a for a in config.applications if a.import_path == "deployments.app:model"]
    gateways = [a for a in config.applications if a.import_path == "deployments.app:gateway"]
    woken: set[str] = set()
    for index, application in enumerate(config.applications):
        if application in gateways:
            sleeping: dict[str, str] = application.args.get("sleeping", {}).get("applications", {})
            woken.update(sleeping.values())
            for name in sorted(set(sleeping.values()) - {model.name for model in models}):
                yield f"applications.{index}.args.sleeping.applications: no model application {name!r} in this file"
    for index, application in enumerate(config.applications):
        scaling = [d.autoscaling_config for d in application.deployments if isinstance(d.autoscaling_config, dict)]
        can_sleep = any(settings.get("min_replicas") == 0 for settings in scaling)
        if application in models and can_sleep and gateways and application.name not in woken:
            yield (
                f"applications.{index}.deployments: `min_replicas: 0`, and no gateway would start the first replica; "
                f"add `sleeping: {{applications: {{MODEL: {application.name}}}}}` to the gateway's args"
            )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
