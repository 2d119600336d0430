"""A machine that only plays a node: programs, metadata, Ray and waiting are recordings."""

from collections.abc import Callable, Mapping, Sequence
from threading import Event

from cluster.node.commands import CommandFailed
from cluster.node.errors import NotYet
from cluster.node.imds import Identity
from cluster.node.patience import Patience
from tests.support.fake_clock import FakeClock

HEAD = {
    "cluster": "smoke",
    "region": "eu-west-1",
    "role": "head",
    "head_address": "10.64.0.10",
    "group": None,
    "num_gpus": 0,
    "token_secret_arn": "arn:aws:secretsmanager:eu-west-1:123456789012:secret:token",
    "gcs": {"kind": "memory"},
}
WORKER = HEAD | {
    "role": "worker",
    "group": "h100",
    "num_gpus": 8,
    "gcs": None,
    "launch_hook": "join",
    "autoscaling_group": "smoke-h100",
}
"""What `node.json` holds on the two kinds of machines."""


class RecordedCommands:
    """Answers command lines by the words they begin with, newest first, and keeps them; no answer: not installed."""

    def __init__(self, answers: Mapping[str, str | Exception] | None = None) -> None:
        self.answers: dict[str, str | Exception] = dict(answers or {})
        self.lines: list[str] = []

    def run(self, *command: str, timeout_s: float = 60.0) -> str:
        line = " ".join(command)
        self.lines.append(line)
        for start, answer in reversed(self.answers.items()):
            if start in line:
                if isinstance(answer, Exception):
                    raise answer
                return answer
        raise CommandFailed(command, f"cannot be run: {command[0]} is not installed")


def failed(*command: str, exit_code: int = 1, output: str = "") -> CommandFailed:
    """What a program raises that ended with an error."""
    return CommandFailed(command, f"ended with {exit_code}", output, exit_code=exit_code)


def quick_patience(stop: Event | None = None, pauses: list[float] | None = None) -> Patience:
    """Patience whose pauses take no time but move its clock."""
    clock, event = FakeClock(), stop or Event()

    def wait(seconds: float) -> bool:
        clock.advance(seconds)
        if pauses is not None:
            pauses.append(seconds)
        return event.is_set()

    return Patience(event, clock, wait)


class FakeMetadata:
    """Metadata of one machine; `failures` first answers fail."""

    def __init__(self, identity: Identity, failures: int = 0) -> None:
        self._identity = identity
        self._failures = failures

    def identify(self) -> Identity:
        if self._failures:
            self._failures -= 1
            raise NotYet("the metadata service at http://169.254.169.254 does not answer")
        return self._identity


class FakeRay:
    """`ray start`: ends with `exit_code` after `looks` looks at it; None: never by itself."""

    def __init__(self, exit_code: int | None = None, looks: int = 0, on_look: Callable[[], None] | None = None) -> None:
        self._exit_code = exit_code
        self._looks = looks
        self._on_look = on_look or (lambda: None)
        self.is_stopped = False

    def exit_code(self) -> int | None:
        self._on_look()
        if self._looks > 0:
            self._looks -= 1
            return None
        return self._exit_code

    def last_words(self) -> str:
        return "Exception: The current node timed out during startup."

    def stop(self, limit_s: float) -> None:
        self.is_stopped = True


class RayStarts:
    """How a node starts Ray: hands out the given processes in turn and keeps how it was asked."""

    def __init__(self, *processes: FakeRay) -> None:
        self._processes = list(processes)
        self.commands: list[list[str]] = []
        self.environments: list[dict[str, str]] = []

    def __call__(self, command: Sequence[str], environment: Mapping[str, str]) -> FakeRay:
        self.commands.append(list(command))
        self.environments.append(dict(environment))
        return self._processes.pop(0)
