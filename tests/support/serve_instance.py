"""One Ray Serve instance for a whole test session, and what tests ask of it. Bound to 127.0.0.1, on free ports."""

import copy
import json
import os
import socket
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import openai
import psutil
import ray
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.schema import TracingConfig

from cluster.weights.config import CACHE_VARIABLE
from core.config import read_yaml
from deployments import app
from deployments.config import MODEL_OPTIONS, ModelArgs
from deployments.gateway.config import GatewayConfig
from deployments.model_replica import ModelReplica
from deployments.tracing.exporter import EXPORTER, proxy_environment
from tests.support.loopback_s3 import LoopbackS3
from tests.support.otlp_collector import OtlpCollector

GATEWAY = "gateway"
READY_TIMEOUT_S = 120.0
RANK_TITLE = "ray::RankActor"
REPLICA_TITLE = "ray::ServeReplica:"
"""How Ray titles the processes of actors."""


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def model_args(config: str, **changes: Any) -> dict[str, Any]:
    """Return the `args` of the model application in a file of `configs/`; a dict among `changes` is merged."""
    (application,) = [
        application
        for application in read_yaml(Path("configs") / config)["applications"]
        if application["import_path"] == "deployments.app:model"
    ]
    args = copy.deepcopy(application["args"])
    for key, value in changes.items():
        args[key] = args.get(key, {}) | value if isinstance(value, dict) else value
    return args


def wait_until(holds: Callable[[], Any], timeout_s: float, what: str) -> float:
    """Return the seconds until `holds` returned something true; fails the test after `timeout_s`."""
    started_s = time.monotonic()
    while not holds():
        waited_s = time.monotonic() - started_s
        assert waited_s < timeout_s, f"{what}: not within {timeout_s:g} s"
        time.sleep(0.05)
    return time.monotonic() - started_s


class ServeInstance:
    """A running Serve with a gateway application; models are deployed by the tests.

    Every process of it finds the store `s3`, and a weights cache that nobody else has.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.s3 = LoopbackS3({})
        self._weights = tempfile.TemporaryDirectory(prefix="eagleray-weights-")
        self.collector = OtlpCollector()
        """Gets the spans of traced requests."""
        # Nothing is sampled but what comes with a sampled `traceparent`.
        tracing = TracingConfig(enabled=True, exporter_import_path=EXPORTER, sampling_ratio=0.0)
        variables = self.s3.start() | {CACHE_VARIABLE: self._weights.name}
        variables |= self.collector.environment | proxy_environment(tracing)
        try:
            with patch.dict(os.environ, variables):
                # More logical CPUs than there are: reservations are book-keeping, and tests deploy several groups.
                ray.init(address="local", namespace="serve", num_cpus=8, include_dashboard=False, log_to_driver=False)
            options = HTTPOptions(host="127.0.0.1", port=self.port, request_timeout_s=120)
            serve.start(http_options=options, proxy_location=ProxyLocation.HeadOnly, tracing_config=tracing)
            serve.run(app.gateway(GatewayConfig()), name=GATEWAY, route_prefix="/")
        except BaseException:
            # Nobody else can: the caller has no instance.
            self.close()
            raise

    def deploy(self, name: str, args: dict[str, Any], num_replicas: int = 1) -> None:
        """Serve a model as application `name`, as its `name` in `args`; returns when every group can be used."""
        before = {group["group_id"] for group in self.groups(args["name"])}
        options = MODEL_OPTIONS | {"num_replicas": num_replicas}
        serve.run(
            serve.deployment(**options)(ModelReplica).bind(ModelArgs.parse(args, "test")), name=name, route_prefix=None
        )

        def is_ready() -> bool:
            groups = [group for group in self.groups(args["name"]) if group["group_id"] not in before]
            return self.is_ready(args["name"]) and [g["state"] for g in groups] == ["ready"] * num_replicas

        wait_until(is_ready, READY_TIMEOUT_S, f"{num_replicas} groups of {args['name']} ready")

    def delete(self, name: str) -> None:
        """End an application; returns when its processes are gone."""
        serve.delete(name)

    def client(self, max_retries: int = 0) -> openai.OpenAI:
        """Return the official client."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", timeout=120, max_retries=max_retries)

    def get(self, path: str) -> str:
        """Return the body, whatever the status."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=30) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.read().decode()

    def models(self) -> list[str]:
        """Return the models the gateway knows; it forgets one fifteen seconds after its last group has gone."""
        return [report["model"] for report in self._models()]

    def groups(self, model: str) -> list[dict[str, Any]]:
        """Return what `/readyz` tells of the model's groups."""
        return [group for report in self._models() if report["model"] == model for group in report["groups"]]

    def is_ready(self, model: str) -> bool:
        """Return whether the model just generated a token."""
        return any(report["is_ready"] for report in self._models() if report["model"] == model)

    def metric(self, name: str, model: str) -> dict[str, float]:
        """Return a metric's value for each group of a model, by group id."""
        values: dict[str, float] = {}
        for line in self.get("/metrics").splitlines():
            if line.startswith(name + "{") and f'model_name="{model}"' in line:
                values[line.split('group="')[1].split('"')[0]] = float(line.rsplit(" ", 1)[1])
        return values

    def processes(self, title: str) -> dict[int, psutil.Process]:
        """Return this instance's own processes whose title starts so, by pid."""
        found = {}
        for process in psutil.Process().children(recursive=True):
            try:
                if " ".join(process.cmdline()).startswith(title):
                    found[process.pid] = process
            except psutil.Error:
                continue
        return found

    def close(self) -> None:
        """End everything this instance started, gently or not."""
        family = psutil.Process().children(recursive=True)
        try:
            serve.shutdown()
        finally:
            ray.shutdown(wait_for_processes=True)
            for process in family:
                if process.is_running():
                    process.kill()
            psutil.wait_procs(family, timeout=5)
            self.s3.stop()
            self.collector.close()
            self._weights.cleanup()

    def _models(self) -> list[dict[str, Any]]:
        return json.loads(self.get("/readyz"))["models"]
