"""From a group's growing counts to rates."""

from collections import deque
from typing import NamedTuple

from engine.request import EngineLoad

WINDOW_S = 3.0
"""Reports come ten times a second, not at its beginning; over three seconds that is not seen."""


class GroupRates(NamedTuple):
    """How fast a group works."""

    prompt_tokens_s: float = 0.0
    """Prompt tokens taken a second, those found in the prefix cache included."""
    output_tokens_s: float = 0.0
    step_s: float | None = None
    """Mean time that a step took; None if there was none."""


class _Reading(NamedTuple):
    at_s: float
    load: EngineLoad


class GroupMeter:
    """Remembers what one group reported over the last few seconds."""

    def __init__(self) -> None:
        self._readings: deque[_Reading] = deque()

    def read(self, at_s: float, load: EngineLoad) -> GroupRates:
        """Take the latest report; return the rates since the one before it."""
        if self._readings and _is_other_engine(self._readings[-1].load, load):
            self._readings.clear()
        while len(self._readings) > 1 and at_s - self._readings[0].at_s > WINDOW_S:
            self._readings.popleft()
        self._readings.append(_Reading(at_s, load))
        return _rates(list(self._readings)[-2:])

    @property
    def rates(self) -> GroupRates:
        """Those over the last few seconds."""
        return _rates(list(self._readings))


def _is_other_engine(before: EngineLoad, after: EngineLoad) -> bool:
    """Return whether counts began anew, as they do with every generation of a group."""
    return after.num_steps < before.num_steps or after.num_prompt_tokens < before.num_prompt_tokens


def _rates(readings: list[_Reading]) -> GroupRates:
    if len(readings) < 2 or readings[-1].at_s <= readings[0].at_s:
        return GroupRates()
    first, last = readings[0], readings[-1]
    seconds = last.at_s - first.at_s
    return GroupRates(
        (last.load.num_prompt_tokens - first.load.num_prompt_tokens) / seconds,
        (last.load.num_generated_tokens - first.load.num_generated_tokens) / seconds,
        _mean_step_s(first.load, last.load),
    )


def _mean_step_s(before: EngineLoad, after: EngineLoad) -> float | None:
    num_steps = after.num_steps - before.num_steps
    if after.figures is None or num_steps <= 0:
        return None
    started_s = before.figures.step_s if before.figures is not None else 0.0
    return (after.figures.step_s - started_s) / num_steps
