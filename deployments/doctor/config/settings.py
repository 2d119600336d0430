"""What in a config is allowed and yet will not do what it should: keys, timeouts, names, bounds of scaling."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from core.errors import InvalidConfig
from deployments.doctor.config.reading import GatewayApplication, ModelApplication, ServeConfig
from deployments.doctor.finding import Finding, note, ok, problem, warning
from deployments.http.api_keys import duplicates, read_key_file


@dataclass(frozen=True)
class KeyFile:
    """What is behind one `api_keys_file`."""

    num_keys: int
    error: str
    """Why it cannot be read; empty if it can."""


def gather_key_files(config: ServeConfig) -> dict[Path, KeyFile]:
    """Return what is in every key file that the config names."""
    paths = {gateway.args.api_keys_file for gateway in config.gateways} - {None}
    return {path: _key_file(path) for path in paths if path is not None}


def check(config: ServeConfig, key_files: Mapping[Path, KeyFile]) -> Iterator[Finding]:
    """Yield what is odd about a config that `deployments.check` lets through."""
    is_open = config.host not in ("127.0.0.1", "localhost", "::1")
    for gateway in config.gateways:
        yield from _keys(gateway, key_files, is_open)
        yield from _timeouts(gateway, config.request_timeout_s)
        yield from _names(gateway, config.models)
    for model in config.models:
        yield from _bounds(model)


def _keys(gateway: GatewayApplication, files: Mapping[Path, KeyFile], is_open: bool) -> Iterator[Finding]:
    args, path = gateway.args, gateway.args.api_keys_file
    if path is not None:
        file = files[path]
        if file.error:
            yield problem(
                "config.keys",
                f"{gateway.application}: api_keys_file: {file.error}",
                "on this machine, if it is to run a gateway, the gateway would not start; put the file there",
            )
        elif not file.num_keys and not args.fixed_keys:
            yield warning(
                "config.keys",
                f"{gateway.application}: {path} has no key, so nobody is let in",
                "python -m deployments.keys new --name NAME",
            )
    num_keys = len(args.fixed_keys) + sum(files[path].num_keys for path in files if path == args.api_keys_file)
    if not args.has_keys and args.allow_anonymous and is_open:
        yield warning(
            "config.keys",
            f"{gateway.application}: everybody who reaches the port may use the models (allow_anonymous)",
            "make sure that the network keeps others out, or make keys: python -m deployments.keys new --name NAME",
        )
    elif not args.has_keys:
        yield note("config.keys", f"{gateway.application}: no keys; callers of this machine need none")
    elif num_keys:
        yield ok("config.keys", f"{gateway.application}: {num_keys} keys")


def _timeouts(gateway: GatewayApplication, serve_s: float | None) -> Iterator[Finding]:
    ours_s = gateway.args.limits.request_timeout_s
    if serve_s is not None and ours_s > serve_s:
        yield warning(
            "config.timeouts",
            f"{gateway.application}: limits.request_timeout_s={ours_s:g} is over http_options.request_timeout_s="
            f"{serve_s:g}, so Serve cuts a request off before the gateway can end it with a reason",
            "make the one in http_options the longer one",
        )


def _names(gateway: GatewayApplication, models: tuple[ModelApplication, ...]) -> Iterator[Finding]:
    served = {model.args.name for model in models if model.args.gateway == gateway.application}
    expected = set(gateway.args.models)
    for name in sorted(expected - served):
        yield warning(
            "config.models",
            f"{gateway.application}: expects model {name!r}, which nothing in this file serves; /readyz says no until "
            "something does",
            f"correct `models` (served here: {', '.join(sorted(served)) or 'none'}), or deploy it too",
        )
    for name in sorted(served - expected) if expected else ():
        yield warning(
            "config.models",
            f"{gateway.application}: model {name!r} is deployed and not in `models`, so nobody can call it",
            "add it to the gateway's `models`",
        )


def _bounds(model: ModelApplication) -> Iterator[Finding]:
    copies = model.copies
    if copies.least > copies.most:
        yield problem(
            "config.scaling",
            f"{model.application}: min_replicas={copies.least} is over max_replicas={copies.most}",
            "raise max_replicas",
        )
    elif copies.most == 0:
        yield problem("config.scaling", f"{model.application}: no replica may run", "set num_replicas to 1 or more")
    else:
        number = f"{copies.least}" if copies.least == copies.most else f"{copies.least} to {copies.most}"
        yield ok("config.scaling", f"{model.application}: {number} replica groups")


def _key_file(path: Path) -> KeyFile:
    try:
        keys = read_key_file(path)
    except InvalidConfig as error:
        return KeyFile(0, error.message)
    twice = duplicates(keys)
    return KeyFile(len(keys), f"{path}: {', '.join(twice)}: a name or a sha256 is there twice" if twice else "")
