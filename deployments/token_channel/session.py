"""One gateway's connection, seen from the group: its submits and cancels in, one frame of events per step out.

Two threads meet here. The engine thread encodes a step's events and leaves the frame in the outbox; the event loop
writes. Only the loop writes, so `Accepted`, written in the callback that submits, always precedes the request's first
events, and a frame waits for nothing but the loop's next turn: there is no timer between a token and the socket.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from cluster.submit_target import SubmitTarget
from core.errors import EaglerayError, ErrorInfo, InvalidRequest
from core.frames import ConnectionLost, pack
from deployments.token_channel.connection import FrameConnection
from deployments.token_channel.messages import (
    PROTOCOL_VERSION,
    Accepted,
    Cancel,
    Events,
    FromGateway,
    Refused,
    Submit,
    Welcome,
)
from engine.request import GenerationRequest, Placement, StepEvents

logger = logging.getLogger(__name__)


class _RequestId(msgspec.Struct, frozen=True):
    request_id: str


class _SubmitHead(msgspec.Struct, frozen=True, tag="Submit"):
    """What can be read of a Submit whose sampling values are refused."""

    request: _RequestId


_decoder = msgspec.msgpack.Decoder(FromGateway)
_head_decoder = msgspec.msgpack.Decoder(_SubmitHead)
_encoder = msgspec.msgpack.Encoder()


class _Step(NamedTuple):
    """One packed Events frame and the requests it ends."""

    frame: bytes
    ended: list[str]


class GatewaySession:
    """Serves one gateway until its connection is gone; then all its open requests are cancelled.

    `owners` maps every open request of the whole server to its session: ids must differ between gateways too, for the
    engine knows requests by id alone.
    """

    def __init__(
        self,
        target: SubmitTarget,
        owners: dict[str, "GatewaySession"],
        on_made: Callable[["GatewaySession"], None],
        on_lost: Callable[["GatewaySession"], None],
        on_placed: Callable[["GatewaySession", Placement], None],
        max_buffered_bytes: int,
    ) -> None:
        self.wants_prefixes = True
        """Whether it must have a snapshot before any other prefix news."""
        self._target = target
        self._owners = owners
        self._on_session_lost = on_lost
        self._on_placed = on_placed
        self._max_buffered_bytes = max_buffered_bytes
        self._loop = asyncio.get_running_loop()
        self._is_welcome = False
        self._sink = self._on_events  # one object: the engine batches events by sink
        self._lock = threading.Lock()
        self._outbox: list[_Step] = []
        self._num_outbox_bytes = 0
        self._is_flush_due = False
        self._named_ids: list[str] = []
        self.connection = FrameConnection(
            self._on_frame,
            self._on_lost,
            on_made=lambda: on_made(self),
            max_buffered_bytes=max_buffered_bytes,
        )

    @property
    def is_welcome(self) -> bool:
        """Whether the gateway has authenticated, so that frames reach it."""
        return self._is_welcome

    async def welcome(self, secret: bytes) -> None:
        """Authenticate and welcome the gateway; one that fails is logged and dropped."""
        try:
            await self.connection.authenticate(secret)
        except ConnectionLost as error:
            logger.warning("gateway refused", extra={"peer": self.connection.peer, "reason": error.message})
            return
        self._is_welcome = True
        status = self._target.status()
        self._send(Welcome(status.group_id, status.model, status.generation, PROTOCOL_VERSION))
        logger.info("gateway connected", extra={"peer": self.connection.peer})

    def send_packed(self, frame: bytes) -> None:
        """Send what every gateway gets alike; not before the welcome."""
        if self._is_welcome:
            self.connection.send_packed(frame)

    def _send(self, message: Welcome | Accepted | Refused) -> None:
        self.connection.send(_encoder.encode(message))

    def _on_frame(self, payload: bytes) -> None:
        try:
            message = _decoder.decode(payload)
        except InvalidRequest as error:
            # Well formed, but out of the ranges this version allows: the fault of one request, not of the gateway.
            self._refuse(_head_decoder.decode(payload).request.request_id, error)
            return
        if isinstance(message, Submit):
            self._submit(message.request)
        elif isinstance(message, Cancel):
            self._cancel(message)
        else:
            self.wants_prefixes = True

    def _submit(self, request: GenerationRequest) -> None:
        request_id = request.request_id
        if request_id in self._owners:
            self._refuse(request_id, InvalidRequest(f"request id {request_id!r} is already open; use a new one"))
            return
        self._owners[request_id] = self
        try:
            placement = self._target.submit(request, self._sink)
        except EaglerayError as error:
            del self._owners[request_id]
            self._refuse(request_id, error)
        except Exception:
            # The replica's boundary: a fault met while admitting one request stays with that request.
            del self._owners[request_id]
            logger.exception("submit failed", extra={"request_id": request_id})
            self._refuse(request_id, EaglerayError("the replica group failed to take the request; see its log"))
        else:
            self._send(Accepted(request_id))
            self._on_placed(self, placement)

    def _refuse(self, request_id: str, error: EaglerayError) -> None:
        self._send(Refused(request_id, ErrorInfo.of(error)))

    def _cancel(self, message: Cancel) -> None:
        if self._owners.get(message.request_id) is self:
            self._target.cancel(message.request_id)

    def _on_events(self, step: StepEvents) -> None:
        """Leave one step's events to the loop. On the engine thread; neither blocks nor raises."""
        ended = [event.request_id for event in step.events if event.is_terminal]
        frame = pack(_encoder.encode(Events(step.events, step.token_ids, self._newly_named(step.request_ids))))
        with self._lock:
            # Past the limit frames are no longer kept; `_flush` finds the excess and drops the connection.
            if self._num_outbox_bytes <= self._max_buffered_bytes:
                self._outbox.append(_Step(frame, ended))
            self._num_outbox_bytes += len(frame)
            is_flush_due, self._is_flush_due = self._is_flush_due, True
        if not is_flush_due:
            # A closed loop has no connections left.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._flush)

    def _newly_named(self, request_ids: list[str]) -> list[str] | None:
        """Return None if the gateway knows that the next tokens are those of `request_ids`."""
        if not request_ids or request_ids == self._named_ids:
            return None
        self._named_ids = request_ids
        return request_ids

    def _flush(self) -> None:
        with self._lock:
            steps, self._outbox = self._outbox, []
            num_bytes, self._num_outbox_bytes = self._num_outbox_bytes, 0
            self._is_flush_due = False
        for step in steps:
            for request_id in step.ended:
                self._disown(request_id)
        if num_bytes > self._max_buffered_bytes:
            self.connection.drop(f"more than {self._max_buffered_bytes} bytes of events waited to be sent")
        else:
            self.connection.send_packed(b"".join([step.frame for step in steps]))

    def _disown(self, request_id: str) -> None:
        if self._owners.get(request_id) is self:
            del self._owners[request_id]

    def _on_lost(self, reason: str) -> None:
        abandoned = [request_id for request_id, owner in self._owners.items() if owner is self]
        for request_id in abandoned:
            del self._owners[request_id]
            self._target.cancel(request_id)
        if self._is_welcome:
            logger.info("gateway lost", extra={"reason": reason, "num_cancelled": len(abandoned)})
        self._on_session_lost(self)
