"""`serve run CONFIG` as `make serve` wants it: without Ray's dashboard, and ended by an application that cannot start.

Ray's dashboard and its dozen processes take a third of a gigabyte, and `serve run` has no switch against them. The
module behind the `serve` command is the one part of Ray used here that is not a documented API.
"""

import os
import re
import signal
import sys
import time

import ray
from ray import serve
from ray.serve.schema import ApplicationStatus
from ray.serve.scripts import cli

EXIT_FAILED = 2
_POLL_S = 1.0
_ERROR_LINE = re.compile(r"^(?:\w+\.)+([A-Z]\w*: .+)$", re.MULTILINE)
"""The last line of a traceback: `core.errors.Unshardable: ...`."""


def main(config_path: str) -> int:
    """Serve until interrupted (0), until the parent process is gone (0), or until an application failed (2)."""
    parent = os.getppid()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if "RAY_ADDRESS" not in os.environ:
            # Ray's default of 15 lets anything else on the machine come first, and a worker may not lower it.
            os.environ.setdefault("RAY_worker_niceness", "0")
            ray.init(address="local", namespace="serve", include_dashboard=False)
        cli.main(args=["run", "--non-blocking", config_path], standalone_mode=False)
        return _watch(parent)
    except KeyboardInterrupt:
        return 0
    finally:
        # From here on a second signal must not leave processes behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        serve.shutdown()
        ray.shutdown(wait_for_processes=True)


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
