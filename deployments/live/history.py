"""The last ten minutes of a gateway, second by second and model by model.

Load and token rates are what groups report, so every gateway copy keeps the same; latencies are those of the requests
that came to this copy. Seconds are those of the wall clock, so that what several copies kept can be put together.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from deployments.live.latencies import ModelLatencies
from deployments.live.rates import GroupMeter, GroupRates
from engine.request import EngineLoad

KEPT_SECONDS = 600
"""Ten minutes; a second of a busy model takes about 300 bytes."""
_MAX_STEP_BACK_S = 5
"""A wall clock that was set back further begins a new history."""
_LONGEST_GAP_S = 10
"""After a longer one nobody can say what was in between."""

_ENCODER = msgspec.json.Encoder()


class GroupNow(NamedTuple):
    """A connected group and its latest report."""

    group_id: str
    model: str
    load: EngineLoad


class ModelSecond(msgspec.Struct, frozen=True, array_like=True):
    """One model in one second; all of its groups together."""

    num_running: int
    num_waiting: int
    prompt_tokens_s: float
    output_tokens_s: float
    kv_use: float
    """The share of all KV blocks that requests hold."""
    first_token: list[int]
    """Times to first token: bucket, count, bucket, count, ..."""
    next_token: list[int]
    """Times between tokens, likewise."""


class Second(msgspec.Struct, frozen=True, array_like=True):
    """What was kept of a second; `models` hold a ModelSecond each, encoded once for everybody who will ask."""

    second: int
    """Unix time at its beginning."""
    models: dict[str, msgspec.Raw]


class LiveHistory:
    """Call `tick` once a second. Lives on one event loop."""

    def __init__(self, groups: Callable[[], Iterable[GroupNow]], now_s: Callable[[], float]) -> None:
        """`now_s` is the wall clock."""
        self._groups = groups
        self._now_s = now_s
        self._seconds: deque[Second] = deque(maxlen=KEPT_SECONDS)
        self._meters: dict[str, GroupMeter] = {}
        self._latencies: dict[str, ModelLatencies] = {}

    def latencies(self, model: str) -> ModelLatencies:
        """Return where the times of a served model's requests are counted."""
        return self._latencies.setdefault(model, ModelLatencies())

    def rates(self, group_id: str) -> GroupRates:
        """Return how fast a group worked over the last few seconds."""
        meter = self._meters.get(group_id)
        return meter.rates if meter is not None else GroupRates()

    def tick(self) -> None:
        """Keep the second that has just ended; two calls in the same one keep it once."""
        now_s = self._now_s()
        second = int(now_s) - 1
        if self._seconds and second <= self._seconds[-1].second:
            if second < self._seconds[-1].second - _MAX_STEP_BACK_S:
                self._seconds.clear()
            return
        models = self._read(now_s)
        self._fill_gap(second, models)
        self._seconds.append(Second(second, {name: _encoded(models[name]) for name in models}))

    def since(self, second: int, sees: Callable[[str], bool]) -> list[Second]:
        """Return what is kept of the seconds after `second`, oldest first; only models that `sees` says yes to."""
        found: list[Second] = []
        for kept in reversed(self._seconds):
            if kept.second <= second:
                break
            found.append(Second(kept.second, {name: data for name, data in kept.models.items() if sees(name)}))
        return found[::-1]

    def _fill_gap(self, second: int, models: dict[str, ModelSecond]) -> None:
        """Give seconds that a busy loop missed the load found after them, whose rates are means over them as well."""
        if not self._seconds or second - self._seconds[-1].second > _LONGEST_GAP_S:
            return
        load = {
            name: _encoded(msgspec.structs.replace(model, first_token=[], next_token=[]))
            for name, model in models.items()
        }
        for missed in range(self._seconds[-1].second + 1, second):
            self._seconds.append(Second(missed, load))

    def _read(self, now_s: float) -> dict[str, ModelSecond]:
        groups: defaultdict[str, list[GroupNow]] = defaultdict(list)
        for group in self._groups():
            groups[group.model].append(group)
        known = {group.group_id for those in groups.values() for group in those}
        self._meters = {group_id: self._meters.get(group_id, GroupMeter()) for group_id in known}
        return {model: self._read_model(model, groups[model], now_s) for model in sorted(groups | self._latencies)}

    def _read_model(self, model: str, groups: list[GroupNow], now_s: float) -> ModelSecond:
        rates = [self._meters[group.group_id].read(now_s, group.load) for group in groups]
        latencies = self.latencies(model)
        return ModelSecond(
            sum(group.load.num_running for group in groups),
            sum(group.load.num_waiting for group in groups),
            round(sum(each.prompt_tokens_s for each in rates), 1),
            round(sum(each.output_tokens_s for each in rates), 1),
            kv_use(*(group.load for group in groups)),
            latencies.first_token.take(),
            latencies.next_token.take(),
        )


def kv_use(*loads: EngineLoad) -> float:
    """Return the share of KV blocks that requests hold; cached blocks are free in effect."""
    num_blocks = sum(load.num_blocks for load in loads)
    num_held = sum(load.num_held_blocks for load in loads)
    return round(num_held / num_blocks, 4) if num_blocks else 0.0


def _encoded(model: ModelSecond) -> msgspec.Raw:
    return msgspec.Raw(_ENCODER.encode(model))
