"""The gateway's end of the token channel: a TokenTransport over one connection to one group."""

import asyncio

import msgspec

from cluster.status import ChannelAddress
from core.errors import EaglerayError, ErrorInfo, ReplicaFailed
from core.frames import ConnectionLost
from deployments.groups.transport import NOBODY, GroupListener
from deployments.token_channel.connection import FrameConnection
from deployments.token_channel.messages import (
    PROTOCOL_VERSION,
    Accepted,
    Cancel,
    Events,
    FromGroup,
    Load,
    Placed,
    Refused,
    Submit,
    WantPrefixes,
    Welcome,
)
from deployments.token_channel.streams import EventStream, OpenStreams
from engine.prefix_feed import PrefixNews
from engine.request import EngineLoad, GenerationRequest, StepEvents


class TcpTransport:
    """All requests of one gateway to one group. Use `connect`. Lives on one event loop.

    A frame holds the events of a whole engine step; each goes to its request's stream as it is decoded, so a token
    costs one dictionary look-up and one wake-up here. When the connection breaks, or the group is silent for too long,
    every open stream gets one terminal event with ReplicaFailed, at once.
    """

    def __init__(
        self,
        group_id: str,
        listener: GroupListener,
        submit_timeout_s: float,
        silence_timeout_s: float,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._group_id = group_id
        self._listener = listener
        self._submit_timeout_s = submit_timeout_s
        self._silence_timeout_s = silence_timeout_s
        self._load: EngineLoad | None = None
        self._awaits_snapshot = False
        self._connection = FrameConnection(self._on_frame, self._on_lost)
        self._decoder = msgspec.msgpack.Decoder(FromGroup)
        self._encoder = msgspec.msgpack.Encoder()
        self._streams = OpenStreams(self._send_cancel)
        self._named_ids: list[str] = []
        self._answers: dict[str, asyncio.Future[EaglerayError | None]] = {}
        self._welcome: asyncio.Future[Welcome] = self._loop.create_future()
        self._last_frame_s = self._loop.time()
        self._silence_timer: asyncio.TimerHandle | None = None

    @classmethod
    async def connect(
        cls,
        address: ChannelAddress,
        group_id: str,
        listener: GroupListener = NOBODY,
        *,
        connect_timeout_s: float = 5.0,
        submit_timeout_s: float = 5.0,
        silence_timeout_s: float = 10.0,
    ) -> "TcpTransport":
        """Return an open transport. Raises ReplicaFailed if nobody answers, or another group does.

        `listener` hears each report after every submit has returned whose request the report counts.
        """
        transport = cls(group_id, listener, submit_timeout_s, silence_timeout_s)
        where = f"replica group {group_id} at {address.host}:{address.port}"
        try:
            async with asyncio.timeout(connect_timeout_s):
                await transport._open(address)
        except TimeoutError:
            raise ReplicaFailed(f"{where} did not answer within {connect_timeout_s} s") from None
        except OSError as error:
            raise ReplicaFailed(f"{where} cannot be reached: {error}") from None
        except EaglerayError as error:
            raise ReplicaFailed(f"{where} cannot be used: {error.message}") from None
        finally:
            if not transport._is_welcome:
                transport._connection.drop("not welcome")
        return transport

    @property
    def group_id(self) -> str:
        """The group at the other end."""
        return self._group_id

    @property
    def is_open(self) -> bool:
        """Whether submit may succeed."""
        return self._connection.is_open

    @property
    def load(self) -> EngineLoad | None:
        """The group's latest report."""
        return self._load

    @property
    def num_open_streams(self) -> int:
        """Requests that were submitted and whose terminal event has not come."""
        return len(self._streams)

    async def submit(self, request: GenerationRequest) -> EventStream:
        """Return the stream once the group accepted. Raises what the group refused with, or ReplicaFailed."""
        if not self.is_open:
            raise ReplicaFailed(f"the connection to replica group {self._group_id} is closed")
        stream = self._streams.open(request.request_id)
        try:
            refusal = await self._ask(request)
        except BaseException:
            # Nobody will read this stream, and the group may hold the request all the same.
            self._streams.leave(request.request_id)
            raise
        if refusal is not None:
            self._streams.discard(request.request_id)
            raise refusal
        return stream

    async def close(self) -> None:
        """Close; open streams end in ReplicaFailed. Idempotent."""
        self._connection.close("closed by the gateway")
        self._end_everything("it was closed by the gateway")

    async def _open(self, address: ChannelAddress) -> None:
        await self._loop.create_connection(lambda: self._connection, address.host, address.port)
        await self._connection.authenticate(address.secret)
        welcome = await self._welcome
        if welcome.group_id != self._group_id:
            raise ConnectionLost(f"replica group {welcome.group_id} answers there")
        if welcome.protocol != PROTOCOL_VERSION:
            raise ConnectionLost(
                f"it speaks version {welcome.protocol} of the token channel and this gateway version "
                f"{PROTOCOL_VERSION}; run the same release of eagleray on both"
            )
        self._watch_silence()

    @property
    def _is_welcome(self) -> bool:
        return self._silence_timer is not None

    async def _ask(self, request: GenerationRequest) -> EaglerayError | None:
        answer: asyncio.Future[EaglerayError | None] = self._loop.create_future()
        self._answers[request.request_id] = answer
        try:
            self._connection.send(self._encoder.encode(Submit(request)))
            async with asyncio.timeout(self._submit_timeout_s):
                return await answer
        except TimeoutError:
            raise ReplicaFailed(
                f"replica group {self._group_id} did not answer a submit within {self._submit_timeout_s} s"
            ) from None
        finally:
            del self._answers[request.request_id]

    def _answer(self, request_id: str, refusal: EaglerayError | None) -> None:
        answer = self._answers.get(request_id)
        if answer is not None and not answer.done():
            answer.set_result(refusal)

    def _send_cancel(self, request_id: str) -> None:
        self._connection.send(self._encoder.encode(Cancel(request_id)))

    def _on_frame(self, payload: bytes) -> None:
        message = self._decoder.decode(payload)
        self._last_frame_s = self._loop.time()
        if isinstance(message, Events):
            self._streams.deliver(self._step_events(message))
        elif isinstance(message, Accepted):
            self._answer(message.request_id, None)
        elif isinstance(message, Load):
            self._take_load(message)
        elif isinstance(message, Placed):
            self._take_placed(message)
        elif isinstance(message, Refused):
            self._answer(message.request_id, message.error.to_error())
        elif not self._welcome.done():
            self._welcome.set_result(message)

    def _step_events(self, message: Events) -> StepEvents:
        if message.request_ids is not None:
            self._named_ids = message.request_ids
        named_ids = self._named_ids if message.token_ids else []
        if len(named_ids) != len(message.token_ids):
            raise ConnectionLost(f"peer sent {len(message.token_ids)} tokens for {len(named_ids)} requests")
        return StepEvents(named_ids, message.token_ids, message.events)

    def _take_load(self, message: Load) -> None:
        self._load = message.load
        # Not at once: acceptances of the same read must wake their submits first (see `connect`).
        self._loop.call_soon(self._listener.on_load, message.load)
        if message.prefixes is not None:
            self._loop.call_soon(self._pass_on, message.prefixes)

    def _take_placed(self, message: Placed) -> None:
        for placement in message.placements:
            self._loop.call_soon(self._listener.on_placed, placement)

    def _pass_on(self, news: PrefixNews) -> None:
        if news.is_snapshot:
            self._awaits_snapshot = False
        # News that was under way when a snapshot was asked for is no reason to ask again.
        if not self._listener.on_prefixes(news) and not self._awaits_snapshot:
            self._awaits_snapshot = True
            self._connection.send(self._encoder.encode(WantPrefixes()))

    def _on_lost(self, reason: str) -> None:
        if not self._welcome.done():
            self._welcome.set_exception(ConnectionLost(reason))
            # It may come while the handshake is awaited instead, whose own error says as much.
            self._welcome.exception()
        self._end_everything(reason)

    def _end_everything(self, reason: str) -> None:
        if self._silence_timer is not None:
            self._silence_timer.cancel()
        error = ReplicaFailed(f"the connection to replica group {self._group_id} is gone: {reason}")
        for request_id in list(self._answers):
            self._answer(request_id, error)
        self._streams.end_all(ErrorInfo.of(error))

    def _watch_silence(self) -> None:
        silent_s = self._loop.time() - self._last_frame_s
        if silent_s >= self._silence_timeout_s:
            self._connection.drop(f"nothing heard for {silent_s:.1f} s")
        self._silence_timer = self._loop.call_later(self._silence_timeout_s / 4, self._watch_silence)
