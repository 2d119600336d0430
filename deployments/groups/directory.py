"""Every replica group a gateway knows: what it announced, the connection to it, and the choice between groups.

Groups announce themselves; nobody has to be asked who exists. A group is known while it gives a sign of life, an
announcement or an open connection (which carries a report every second): tokens keep flowing while announcements, which
take another road, are held up. Only a group that announced `ready` and is connected gets new work.
"""

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import NamedTuple

from cluster.routing.decisions import Decisions
from cluster.routing.router import Reservation, Router
from cluster.status import ChannelAddress, GroupStatus
from core.clock import Clock, MonotonicClock
from core.errors import ModelNotFound, NotReady, Overloaded, ReplicaFailed
from deployments.groups.link import Connect, GroupLink
from deployments.groups.routing import RoutingConfig, make_router, routing_request
from deployments.groups.transport import GroupListener, TokenStream, TokenTransport
from deployments.token_channel.client import TcpTransport
from engine.prefix_feed import PrefixNews
from engine.request import EngineLoad, GenerationRequest, Placement, TokenEvent

logger = logging.getLogger(__name__)

TEND_PERIOD_S = 0.25
"""Between two looks at connections and silences."""
NOT_READY_RETRY_S = 2.0
"""Groups announce themselves this often; asking again sooner learns nothing."""

_MAX_UNEXPECTED = 100


class ServedModel(NamedTuple):
    """What a gateway must know of a model before it can take a request for it."""

    name: str
    max_model_len: int
    """The smallest of its groups', so that any of them can serve what is let in."""
    source: str
    """Where tokenizer and chat template are read from."""
    revision: str | None


async def connect_tcp(address: ChannelAddress, group_id: str, listener: GroupListener) -> TokenTransport:
    """Open a token channel. Raises ReplicaFailed."""
    return await TcpTransport.connect(address, group_id, listener)


class RoutedStream:
    """A TokenStream that holds its reservation until it ends. Use as an async context manager, like any TokenStream.

    Who wants to spare a coroutine per token reads `events` and tells `note` of each.
    """

    def __init__(
        self, stream: TokenStream, reservation: Reservation, submitted_s: float = 0.0, num_refusals: int = 0
    ) -> None:
        self.events = aiter(stream)
        self.submitted_s = submitted_s
        """When the group was asked, on the directory's clock."""
        self.num_refusals = num_refusals
        """Groups that had refused before."""
        self._stream = stream
        self._reservation = reservation

    @property
    def group_id(self) -> str:
        """The group that serves the request."""
        return self._reservation.group_id

    @property
    def num_cached_tokens(self) -> int:
        """Of the prompt, what the router expected that group to have cached."""
        return self._reservation.num_cached_tokens

    async def __aenter__(self) -> "RoutedStream":
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._reservation.release()
        await self._stream.__aexit__(*exc)

    def __aiter__(self) -> "RoutedStream":
        return self

    async def __anext__(self) -> TokenEvent:
        event = await anext(self.events)
        self.note(event)
        return event

    def note(self, event: TokenEvent) -> None:
        """Count what came out of `events`; the reservation goes with the last one."""
        if event.token_ids:
            self._reservation.progress(len(event.token_ids))
        if event.error is not None and isinstance(event.error.to_error(), ReplicaFailed):
            self._reservation.failed()
        elif event.is_terminal:
            self._reservation.release()


class _Group:
    """One known group: its last words, when they came, and the way to it."""

    def __init__(self, status: GroupStatus, link: GroupLink) -> None:
        self.status = status
        self.link = link
        self.seen_s = 0.0

    @property
    def is_open(self) -> bool:
        """Whether new work may go there."""
        return self.status.state == "ready" and self.link.transport is not None


class GroupDirectory:
    """Groups, their transports and the router between them. Lives on one event loop."""

    def __init__(
        self,
        expected: Collection[str] | None = None,
        *,
        routing: RoutingConfig | None = None,
        router: Router | None = None,
        connect: Connect = connect_tcp,
        clock: Clock | None = None,
        forget_after_s: float = 15.0,
    ) -> None:
        """`expected`: public model names to accept announcements for; None accepts any.

        `router` is made as `routing` says unless it is given.
        """
        self._expected = frozenset(expected) if expected is not None else None
        self._connect = connect
        self._clock = clock if clock is not None else MonotonicClock()
        self._routing = routing if routing is not None else RoutingConfig()
        self._router = router if router is not None else make_router(self._routing, self._clock)
        self._forget_after_s = forget_after_s
        self._groups: dict[str, _Group] = {}
        self._listeners: list[Callable[[GroupStatus], None]] = []
        self._opening_listeners: list[Callable[[], None]] = []
        self._last_open: list[str] = []
        self._unexpected: set[str] = set()
        self._tending: asyncio.Task[None] | None = None

    @property
    def decisions(self) -> Decisions:
        """What the router decided so far."""
        return self._router.decisions

    def start(self) -> None:
        """Begin looking after connections every quarter second on the running loop (reconnect, forget). Idempotent."""
        if self._tending is None:
            self._tending = asyncio.get_running_loop().create_task(self._tend_forever())

    async def close(self) -> None:
        """Close every transport; open streams end in ReplicaFailed. Idempotent."""
        if self._tending is not None:
            self._tending.cancel()
            self._tending = None
        links = [self._forget(group_id) for group_id in list(self._groups)]
        for link in links:
            await link.wait_closed()

    def subscribe(self, on_change: Callable[[GroupStatus], None]) -> None:
        """Have `on_change` called with the status of every group that appears or changes; not to block or raise."""
        self._listeners.append(on_change)

    def subscribe_openings(self, on_change: Callable[[], None]) -> None:
        """Have `on_change` called when a group may get new work that could not before, or the other way round."""
        self._opening_listeners.append(on_change)

    def announce(self, status: GroupStatus) -> None:
        """Take what a group says about itself; call on the loop."""
        if self._expected is not None and status.model not in self._expected:
            self._note_unexpected(status)
            return
        group = self._groups.get(status.group_id)
        if group is None:
            group = self._groups[status.group_id] = self._new_group(status)
            is_change = True
        elif status.generation < group.status.generation:
            return  # overtaken on its way
        else:
            is_change = status != group.status
            if status.generation > group.status.generation:
                self._router.renewed(status.group_id)
        group.status = status
        group.seen_s = self._clock.now_s()
        group.link.want(status.channel if status.state in ("ready", "draining") else None)
        if is_change:
            for on_change in self._listeners:
                on_change(status)
        self._tell_openings()

    def statuses(self, model: str | None = None) -> list[GroupStatus]:
        """Return the latest status of every known group (of `model`), oldest group first."""
        return [group.status for group in self._groups.values() if model is None or group.status.model == model]

    def models(self) -> list[ServedModel]:
        """Return every model that some known group has described, by name."""
        models: dict[str, ServedModel] = {}
        for status in self.statuses():
            if not status.model_source or status.max_model_len <= 0:
                continue  # still reading its configuration
            known = models.get(status.model)
            limit = min(status.max_model_len, known.max_model_len) if known is not None else status.max_model_len
            models[status.model] = ServedModel(status.model, limit, status.model_source, status.model_revision)
        return [models[name] for name in sorted(models)]

    def open_groups(self, model: str) -> list[str]:
        """Return ids of the groups of `model` that may get new work now: ready and connected."""
        return [id_ for id_, group in self._groups.items() if group.status.model == model and group.is_open]

    def loads(self) -> dict[str, EngineLoad]:
        """Return the latest load report of every connected group, by group id."""
        transports = {group_id: group.link.transport for group_id, group in self._groups.items()}
        loads = {group_id: transport.load for group_id, transport in transports.items() if transport is not None}
        return {group_id: load for group_id, load in loads.items() if load is not None}

    def is_group_coming(self, model: str) -> bool:
        """Return whether a group of `model` is open or may soon be: it loads, restarts, connects, or is being replaced.

        A failed group is replaced too, but nobody knows when.
        """
        return any(status.state != "failed" for status in self.statuses(model))

    async def submit(self, model: str, request: GenerationRequest, last_resort: Collection[str] = ()) -> RoutedStream:
        """Return the stream of the first group that accepts; each group is asked at most once, best first.

        Groups of `last_resort` are asked after all others. Raises ModelNotFound, NotReady if no group is ready,
        RequestError as the group gave it, or the last refusal with the smallest retry_after_s any group gave.
        """
        self._require_model(model)
        wanted = routing_request(self._routing, model, request)
        refusals: list[Overloaded | ReplicaFailed] = []
        asked: set[str] = set()
        # Asked afresh each time: groups come and go while one of them thinks.
        while groups := [group_id for group_id in self.open_groups(model) if group_id not in asked]:
            preferred = [group_id for group_id in groups if group_id not in last_resort]
            reservation = self._router.reserve(preferred or groups, wanted)
            asked.add(reservation.group_id)
            try:
                return await self._submit(reservation, request, len(refusals))
            except (Overloaded, ReplicaFailed) as refusal:
                refusals.append(refusal)
        raise _combined(refusals) if refusals else self._not_ready(model)

    def tend(self) -> None:
        """Reconnect what is due and forget what is silent; `start` has it called regularly."""
        now_s = self._clock.now_s()
        for group_id, group in list(self._groups.items()):
            if group.link.transport is not None:
                group.seen_s = now_s
            if now_s - group.seen_s >= self._forget_after_s:
                logger.info("group forgotten", extra={"group_id": group_id, "silent_s": self._forget_after_s})
                self._forget(group_id)
            else:
                group.link.tend()
        self._tell_openings()

    async def _tend_forever(self) -> None:
        while True:
            await asyncio.sleep(TEND_PERIOD_S)
            self.tend()

    async def _submit(self, reservation: Reservation, request: GenerationRequest, num_refusals: int) -> RoutedStream:
        submitted_s = self._clock.now_s()
        try:
            transport = self._groups[reservation.group_id].link.transport
            assert transport is not None, "only open groups are picked"
            stream = await transport.submit(request)
        except ReplicaFailed:
            reservation.failed()
            raise
        except BaseException:
            reservation.release()
            raise
        reservation.accepted()
        return RoutedStream(stream, reservation, submitted_s, num_refusals)

    def _new_group(self, status: GroupStatus) -> _Group:
        group_id = status.group_id

        # What a group said may still be under way when the group is forgotten.
        def on_load(load: EngineLoad) -> None:
            if group_id in self._groups:
                self._router.report(group_id, load)

        def on_prefixes(news: PrefixNews) -> bool:
            return group_id not in self._groups or self._router.note_prefixes(group_id, news)

        def on_placed(placement: Placement) -> None:
            if group_id in self._groups:
                self._router.note_placed(group_id, placement)

        listener = GroupListener(on_load, on_prefixes, on_placed)
        logger.info("group found", extra={"group_id": group_id, "model": status.model, "state": status.state})
        return _Group(status, GroupLink(group_id, self._connect_and_tell, listener, self._clock))

    async def _connect_and_tell(
        self, address: ChannelAddress, group_id: str, listener: GroupListener
    ) -> TokenTransport:
        transport = await self._connect(address, group_id, listener)
        # The link takes the transport when this returns, before the loop's next turn.
        asyncio.get_running_loop().call_soon(self._tell_openings)
        return transport

    def _tell_openings(self) -> None:
        now_open = [group_id for group_id, group in self._groups.items() if group.is_open]
        if now_open != self._last_open:
            self._last_open = now_open
            for on_change in self._opening_listeners:
                on_change()

    def _forget(self, group_id: str) -> GroupLink:
        link = self._groups.pop(group_id).link
        self._router.forget(group_id)
        link.close()
        return link

    def _note_unexpected(self, status: GroupStatus) -> None:
        if status.model not in self._unexpected and len(self._unexpected) < _MAX_UNEXPECTED:
            self._unexpected.add(status.model)
            logger.warning("unexpected model ignored", extra={"model": status.model, "group_id": status.group_id})

    def _require_model(self, model: str) -> None:
        known = {status.model for status in self.statuses()} | (self._expected or frozenset())
        if model not in known:
            served = ", ".join(sorted(known)) or "none yet"
            raise ModelNotFound(f"model {model!r} is not served here; models served: {served}", param="model")

    def _not_ready(self, model: str) -> NotReady:
        states = ", ".join(f"{status.group_id} is {status.state}" for status in self.statuses(model))
        return NotReady(
            f"no replica group of {model!r} can take work now ({states or 'none has announced itself'}); try again",
            retry_after_s=NOT_READY_RETRY_S,
        )


def _combined(refusals: list[Overloaded | ReplicaFailed]) -> Overloaded | ReplicaFailed:
    """Return the last refusal, with the soonest time at which any group wants to be asked again."""
    times_s = [refusal.retry_after_s for refusal in refusals if refusal.retry_after_s is not None]
    refusals[-1].retry_after_s = min(times_s, default=None)
    return refusals[-1]
