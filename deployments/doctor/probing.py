"""Runs what looks at things, so that none of it hangs and none of it stops the rest.

A probe gathers facts and turns them into findings. It gets a thread of its own and a time limit; one that breaks or
takes too long becomes a finding itself. Threads cannot be ended, so one that hangs is left behind and dies with the
process.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from deployments.doctor.finding import Finding, warning

Look = Callable[[], Iterable[Finding]]


class Probe(NamedTuple):
    """One thing to look at."""

    name: str
    """As `Finding.check`, for what the probe says about itself."""
    look: Look
    timeout_s: float = 10.0

    def slower(self, factor: float) -> "Probe":
        """Return it with `factor` times its time limit."""
        return self._replace(timeout_s=factor * self.timeout_s)


class _Outcome:
    """Filled by a probe's thread, read when its time is up."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.findings: list[Finding] = []
        self._done = threading.Event()
        threading.Thread(target=self._run, name=f"doctor {probe.name}", daemon=True).start()

    def wait(self, timeout_s: float) -> list[Finding]:
        """Return what was found, or that it took too long."""
        if self._done.wait(max(0.0, timeout_s)):
            return self.findings
        return [
            warning(
                self.probe.name,
                f"no answer within {self.probe.timeout_s:g} s",
                "look at it by hand, or try again when the machine is less busy (--timeout-factor gives more time)",
            )
        ]

    def _run(self) -> None:
        try:
            self.findings = list(self.probe.look())
        # The boundary of a probe: whatever is broken here, the others have their say.
        except Exception as error:  # noqa: BLE001
            said = " ".join(str(error).split()) or "no message"
            self.findings = [
                warning(
                    self.probe.name,
                    f"cannot be looked at: {type(error).__name__}: {said}",
                    "if the installation is broken, repair that first; else look at it by hand",
                )
            ]
        finally:
            self._done.set()


def run(probes: Sequence[Probe]) -> list[Finding]:
    """Run all probes at the same time; return their findings in the probes' order. Blocks for the longest limit."""
    started_s = time.monotonic()
    outcomes = [_Outcome(probe) for probe in probes]
    return [
        finding
        for outcome in outcomes
        for finding in outcome.wait(started_s + outcome.probe.timeout_s - time.monotonic())
    ]
