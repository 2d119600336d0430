"""What became of one stream, in stamps: each search for a group, and each group's part of the work.

Written while the stream is read, at its few turns and never for a token; read when the request has ended. All times are
the gateway's. A group counts durations by its own clock; they are laid end to end from the moment at which the gateway
turned to the group, and end with the part at the latest, so clocks of other machines are never compared.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from core.clock import Clock
from core.errors import EaglerayError
from deployments.groups.directory import RoutedStream
from engine.request import TokenEvent
from engine.request_timings import RequestTimings, StayTimes

PhaseName = Literal["queue", "prefill", "decode"]


class Phase(NamedTuple):
    """What a group did with a request for a while."""

    name: PhaseName
    began_s: float
    ended_s: float
    stay: StayTimes


@dataclass(slots=True)
class Breakage:
    """Why a stream that had a group needs another one."""

    at_s: float
    group_id: str
    cause: str
    """Code of the error."""
    num_tokens: int
    """That the client has got so far."""


@dataclass(slots=True)
class Search:
    """Looking for a group that takes the request."""

    began_s: float
    breakage: Breakage | None = None
    """None: the request is new."""
    held_from_s: float | None = None
    held_until_s: float | None = None
    """From the first wait for a group to the end of the last one."""
    ended_s: float | None = None
    num_refusals: int = 0
    """Of groups asked since the last wait."""
    group_id: str | None = None
    num_cached_tokens: int = 0
    """Which the router expected that group to have of the prompt."""
    error: str | None = None
    """Code of what ended the search without a group."""

    def hold(self, began_s: float, ended_s: float) -> None:
        """Take note of a wait."""
        if self.held_from_s is None:
            self.held_from_s = began_s
        self.held_until_s = ended_s


@dataclass(slots=True)
class Part:
    """A group's work on the request."""

    group_id: str
    began_s: float
    """When the request was sent to it."""
    ended_s: float | None = None
    first_token_s: float | None = None
    num_tokens: int = 0
    timings: RequestTimings | None = None
    """As of the first token, or of the end."""
    is_told: bool = False
    """Whether the group itself told the end; a stop string or a leaving client ends a part without it."""
    error: str | None = None
    """Code of what broke it."""

    def note(self, event: TokenEvent, now_s: float) -> None:
        """Take what an event tells besides tokens."""
        self.timings = event.timings
        if self.first_token_s is None and event.token_ids:
            self.first_token_s = now_s
        if event.is_terminal:
            self.is_told = True
            self.ended_s = now_s

    def end(self, now_s: float, num_tokens: int) -> None:
        """The gateway reads no further."""
        self.num_tokens = num_tokens
        if self.ended_s is None:
            self.ended_s = now_s

    def phases(self) -> list[Phase]:
        """Return what the group did when, without gaps; empty if it has told nothing. Only for a part that ended."""
        if self.timings is None or self.ended_s is None:
            return []
        found: list[Phase] = []
        at_s = self.began_s
        for stay in self.timings.stays:
            lengths_s: dict[PhaseName, float] = {
                "queue": stay.queued_s,
                "prefill": stay.prefill_s,
                "decode": stay.decode_s,
            }
            for name, seconds in lengths_s.items():
                ended_s = min(at_s + seconds, self.ended_s)
                if name == "queue" or seconds > 0:
                    found.append(Phase(name, at_s, ended_s, stay))
                at_s = ended_s
        if not self.is_told:
            # All that is known is how it was at the first token; from then on it decoded.
            stay = self.timings.stays[-1]
            if found[-1].name == "decode":
                found.pop()
            found.append(Phase("decode", found[-1].ended_s, self.ended_s, stay))
        return found


@dataclass(slots=True)
class StreamTrail:
    """Searches and parts of one stream, in order; a part follows each search that found a group."""

    clock: Clock
    searches: list[Search] = field(default_factory=list[Search])
    parts: list[Part] = field(default_factory=list[Part])

    @contextmanager
    def search(self, breakage: Breakage | None = None) -> Iterator[Search]:
        """Yield a search that begins now and ends, if it finds no group, with the block."""
        search = Search(self.clock.now_s(), breakage)
        self.searches.append(search)
        try:
            yield search
        except EaglerayError as error:
            search.error = error.code
            raise
        finally:
            search.ended_s = self.clock.now_s()

    def begin_part(self, stream: RoutedStream) -> Part:
        """Return the part of the group that the last search has found."""
        search = self.searches[-1]
        search.ended_s = stream.submitted_s
        search.group_id = stream.group_id
        search.num_refusals = stream.num_refusals
        search.num_cached_tokens = stream.num_cached_tokens
        part = Part(stream.group_id, stream.submitted_s)
        self.parts.append(part)
        return part

    @property
    def ended_s(self) -> float:
        """When the last group was left; 0 if there was none."""
        return max((part.ended_s or 0.0 for part in self.parts), default=0.0)

    @property
    def num_resumes(self) -> int:
        """Groups that went on with what another had begun."""
        return max(0, len(self.parts) - 1)

    def total_s(self, name: PhaseName) -> float:
        """Return the time that groups have spent so."""
        return sum(
            phase.ended_s - phase.began_s for part in self.parts for phase in part.phases() if phase.name == name
        )

    @property
    def hold_s(self) -> float:
        """Time spent waiting for a group."""
        waits = [(search.held_from_s, search.held_until_s) for search in self.searches]
        return sum(until_s - from_s for from_s, until_s in waits if from_s is not None and until_s is not None)
