"""Running the machine's own programs: `lsblk`, `mkfs.xfs`, `nvidia-smi`, `ray`."""

import subprocess
from collections.abc import Sequence
from typing import Protocol


class CommandFailed(Exception):
    """A program is missing, ended with an error or took too long; the message holds its command line and last words."""

    def __init__(self, command: Sequence[str], reason: str, output: str = "", *, exit_code: int | None = None) -> None:
        last_words = " ".join(output.split())[-400:]
        super().__init__(f"`{' '.join(command)}` {reason}" + (f": {last_words}" if last_words else ""))
        self.exit_code = exit_code


class Commands(Protocol):
    """How a step runs programs."""

    def run(self, *command: str, timeout_s: float = 60.0) -> str:
        """Run a program to its end and return what it printed. Blocks. Raises CommandFailed."""
        ...


class SystemCommands:
    """Runs programs on this machine."""

    def run(self, *command: str, timeout_s: float = 60.0) -> str:
        """Run a program to its end and return its standard output. Blocks. Raises CommandFailed."""
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=timeout_s
            )
        except FileNotFoundError:
            raise CommandFailed(command, f"cannot be run: {command[0]} is not installed") from None
        except OSError as error:
            raise CommandFailed(command, f"cannot be run: {error.strerror}") from None
        except subprocess.TimeoutExpired:
            raise CommandFailed(command, f"did not end within {timeout_s:g} s") from None
        if done.returncode != 0:
            said = done.stderr.strip() or done.stdout
            raise CommandFailed(command, f"ended with {done.returncode}", said, exit_code=done.returncode)
        return done.stdout
