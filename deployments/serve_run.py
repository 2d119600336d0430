"""`serve run CONFIG` as `make serve` wants it: sooner ready, without Ray's dashboard, and ended by an application that
cannot start.

Ray's dashboard and its dozen processes take a third of a gigabyte, and `serve run` has no switch against them. It also
has every application built in a worker of its own; here they are built in this process, unless the config asks for
something that only Ray's command does.
"""

import os
import re
import signal
import sys
import time
from pathlib import Path

import ray
from ray import serve
from ray.serve.schema import ApplicationStatus, ServeDeploySchema

from core.errors import InvalidConfig
from deployments.applications import OnlyRayCan, deploy, read_config
from deployments.tracing.exporter import proxy_environment

EXIT_FAILED = 2
_POLL_S = 1.0
_ERROR_LINE = re.compile(r"^(?:\w+\.)+([A-Z]\w*: .+)$", re.MULTILINE)
"""The last line of a traceback: `core.errors.Unshardable: ...`."""


def main(config_path: str) -> int:
    """Serve until interrupted (0), until the parent process is gone (0), or until it cannot be served (2)."""
    parent = os.getppid()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        config = read_config(Path(config_path))
    except InvalidConfig as error:
        sys.stderr.write(f"{error.message}\n")
        return EXIT_FAILED
    try:
        if "RAY_ADDRESS" not in os.environ:
            # Ray's default of 15 lets anything else on the machine come first, and a worker may not lower it.
            os.environ.setdefault("RAY_worker_niceness", "0")
            os.environ.update(proxy_environment(config.tracing_config))
            ray.init(address="local", namespace="serve", include_dashboard=False)
        _deploy(config, config_path)
        return _watch(parent)
    except KeyboardInterrupt:
        return 0
    finally:
        # From here on a second signal must not leave processes behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        serve.shutdown()
        ray.shutdown(wait_for_processes=True)


def _deploy(config: ServeDeploySchema, config_path: str) -> None:
    try:
        deploy(config)
    except OnlyRayCan:
        # The one part of Ray used here that is not a documented API, and that few configs need.
        from ray.serve.scripts import cli

        cli.main(args=["run", "--non-blocking", config_path], standalone_mode=False)


def _watch(parent: int) -> int:
    while os.getppid() == parent:
        for name, application in serve.status().applications.items():
            if application.status == ApplicationStatus.DEPLOY_FAILED:
                messages = [application.message, *(d.message for d in application.deployments.values())]
                sys.stderr.write(f"application {name} failed: {last_words(messages)}\n")
                return EXIT_FAILED
        time.sleep(_POLL_S)
    return 0


def last_words(messages: list[str]) -> str:
    """Return the error itself out of Serve's messages, which wrap a traceback in advice; else all they say."""
    errors = [error for message in messages for error in _ERROR_LINE.findall(message)]
    return errors[-1] if errors else " ".join(" ".join(messages).split())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
