"""Where the engine thread's time goes."""

from dataclasses import dataclass, field

from engine.step_times import StepTimes


@dataclass(slots=True)
class EngineStats:
    """Seconds by part of the step, summed over all steps. Written by the engine thread, read by anybody.

    Of the wall, unless the engine was given another timer.
    """

    num_steps: int = 0
    """Committed steps."""
    intake_s: float = 0.0
    """Taking in new requests, cancellations and deadlines."""
    plan_s: float = 0.0
    """Deciding what to compute, and writing it down."""
    submit_s: float = 0.0
    """Encoding plans and sending them to the ranks."""
    tell_s: float = 0.0
    """Handing events to their sinks, the sinks' own time included."""
    publish_s: float = 0.0
    """Hashing blocks for the prefix cache."""
    receive_s: float = 0.0
    """Waiting for the ranks' answers and reading them; not counted as the leader's own work."""
    commit_s: float = 0.0
    """Taking results in."""
    step_times: StepTimes = field(default_factory=StepTimes)
    """How long rank 0 spent on each step."""

    @property
    def leader_us_per_step(self) -> float:
        """Microseconds of the leader's own work per step."""
        return 1e6 * (sum(self.parts_s().values()) - self.receive_s) / max(1, self.num_steps)

    def parts_s(self) -> dict[str, float]:
        """Return seconds by part, in the order of a step."""
        return {
            "intake": self.intake_s,
            "plan": self.plan_s,
            "submit": self.submit_s,
            "tell": self.tell_s,
            "publish": self.publish_s,
            "receive": self.receive_s,
            "commit": self.commit_s,
        }

    def describe(self) -> str:
        """Return one line of microseconds per step."""
        shown = ", ".join(
            f"{name} {1e6 * part_s / max(1, self.num_steps):.0f}" for name, part_s in self.parts_s().items()
        )
        return f"{self.num_steps} steps, leader {self.leader_us_per_step:.0f} us per step ({shown})"
