"""Asks other processes: commands of the system, and Python that may crash or hang where this process must not."""

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Reply(NamedTuple):
    """How a command ended."""

    output: str
    error: str
    """Why there is no output to trust: its last words, or that it did not end; empty if it went well."""


def ask(command: Sequence[str], timeout_s: float, environment: Mapping[str, str] | None = None) -> Reply | None:
    """Return what a command says; None if there is no such command. It is killed after `timeout_s`.

    `environment` None: this process's own.
    """
    if shutil.which(command[0]) is None:
        return None
    try:
        run = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return Reply("", f"no answer within {timeout_s:g} s")
    except OSError as error:
        return Reply("", f"{command[0]} cannot be run: {error.strerror}")
    if run.returncode == 0:
        return Reply(run.stdout, "")
    return Reply(run.stdout, _last_words(run.stderr or run.stdout) or f"{command[0]} ended with {run.returncode}")


def ask_python(script: str, arguments: Sequence[str], timeout_s: float) -> Reply:
    """Run a script in a fresh interpreter like this one, so that what it loads cannot hurt this process."""
    reply = ask([sys.executable, "-c", script, *arguments], timeout_s)
    assert reply is not None, "the interpreter that runs this exists"
    return reply


def ask_module(module: str, arguments: Sequence[str], timeout_s: float, environment: Mapping[str, str]) -> Reply:
    """Do the same with a module of ours."""
    reply = ask([sys.executable, "-m", module, *arguments], timeout_s, environment)
    assert reply is not None, "the interpreter that runs this exists"
    return reply


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
