"""Where the engine thread's time goes."""

from dataclasses import dataclass


@dataclass(slots=True)
class EngineStats:
    """Seconds by part of the step, summed over all steps. Written by the engine thread, read by anybody."""

    num_steps: int = 0
    """Committed steps."""
    plan_s: float = 0.0
    """Taking in new requests and deciding what to compute."""
    submit_s: float = 0.0
    """Sending plans to the ranks."""
    wait_s: float = 0.0
    """Waiting for the ranks: not the leader's own work."""
    commit_s: float = 0.0
    """Taking results in."""
    emit_s: float = 0.0
    """Handing events to their sinks, the sinks' own time included."""

    @property
    def leader_us_per_step(self) -> float:
        """Microseconds of the leader's own work per step."""
        return 1e6 * (self.plan_s + self.submit_s + self.commit_s + self.emit_s) / max(1, self.num_steps)

    def describe(self) -> str:
        """Return one line of microseconds per step."""
        steps = max(1, self.num_steps)
        parts = {"plan": self.plan_s, "submit": self.submit_s, "commit": self.commit_s, "emit": self.emit_s}
        shown = ", ".join(f"{name} {1e6 * seconds / steps:.0f}" for name, seconds in parts.items())
        return f"{self.num_steps} steps, leader {self.leader_us_per_step:.0f} us per step ({shown})"
