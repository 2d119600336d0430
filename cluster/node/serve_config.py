"""The Serve config of a cluster: the YAML that `serve run` takes on one machine, fetched and fitted to many."""

import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from cluster.node.aws import ask_aws, aws_client
from cluster.node.commands import CommandFailed, Commands
from cluster.node.errors import BootFailed

logger = logging.getLogger(__name__)

ServeConfig = dict[str, Any]
"""A Serve config as its YAML holds it; Serve's own schema says what is in it."""

ALL_INTERFACES = "0.0.0.0"
"""Each node serves HTTP at its own address and one config is for all; the security group admits only the balancer."""


def fetch_serve_config(location: str, region: str) -> str:
    """Return the YAML at `ssm:/PARAMETER` or `s3://BUCKET/KEY`. Raises NotYet, BootFailed."""
    where = f"Serve config {location}"
    if location.startswith("ssm:"):
        ssm = aws_client("ssm", region)
        answer = ask_aws(where, lambda: ssm.get_parameter(Name=location.removeprefix("ssm:"), WithDecryption=True))
        return answer["Parameter"]["Value"]
    bucket, _, key = location.removeprefix("s3://").partition("/")
    s3 = aws_client("s3", region)
    return ask_aws(where, lambda: s3.get_object(Bucket=bucket, Key=key)["Body"].read()).decode()


def for_cluster(text: str) -> ServeConfig:
    """Return the config with what a cluster needs and the YAML leaves open. Raises BootFailed if it is no mapping."""
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BootFailed(f"the Serve config is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict) or not isinstance(config.get("http_options") or {}, dict):
        raise BootFailed(f"the Serve config must be a mapping with applications, got {str(config)[:80]!r}")
    options = {"host": ALL_INTERFACES} | (config.get("http_options") or {})
    if options["host"] in ("127.0.0.1", "localhost"):
        logger.warning(
            "no load balancer can reach this cluster: its config says http_options.host; leave that line out",
            extra={"host": options["host"]},
        )
    return {"proxy_location": "EveryNode"} | config | {"http_options": options}


def check_serve_config(commands: Commands, config: ServeConfig) -> None:
    """Return if the config is sound: no unknown keys, no gateway without keys. Raises BootFailed with each problem."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "serve.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        try:
            # Its own process, for the check imports what is served, and that is a layer above this one.
            commands.run(sys.executable, "-m", "deployments.check", str(path), timeout_s=120)
        except CommandFailed as error:
            problems = str(error).replace(f"{path}: ", "")
            raise BootFailed(f"the Serve config is not deployed, it is not sound: {problems}") from None
