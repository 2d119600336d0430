"""Replica groups without ranks: one that says what the test wrote, and one around a real engine."""

import threading
from collections.abc import Iterator, Sequence

from cluster.status import ChannelAddress, GroupState, GroupStatus
from core.errors import EaglerayError, ErrorInfo, ReplicaFailed
from core.progress import Progress
from engine.engine import Engine
from engine.request import EngineLoad, EventSink, GenerationRequest, Placement, StepEvents, TokenEvent
from parallel.ops.choice import OpChoice
from parallel.plan import TokenLogprobs
from tests.support.byte_tokenizer import EOS

MAX_MODEL_LEN = 200
NOWHERE = ChannelAddress("127.0.0.1", 1, b"secret")


def status_of_group(
    group_id: str,
    model: str = "tiny",
    state: GroupState = "ready",
    progress: Sequence[Progress] = (),
    error: ErrorInfo | None = None,
) -> GroupStatus:
    return GroupStatus(
        group_id=group_id,
        model=model,
        application="app",
        state=state,
        generation=1,
        world_size=1,
        progress=list(progress),
        error=error,
        channel=NOWHERE if state == "ready" else None,
        model_source="/models/tiny",
        max_model_len=MAX_MODEL_LEN,
        ops=[OpChoice("linear", "torch", "plain", "there is no compiler")],
    )


class ScriptedGroup:
    """A SubmitTarget that answers every request at once with the bytes of `reply`, then ends it.

    It ends with `error` if there is one, with `length` where the reply is cut at max_tokens, otherwise with EOS. An
    endless group never ends by itself: only a cancel does it.
    """

    def __init__(self, reply: str | bytes = "Hello!", group_id: str = "group-1") -> None:
        self.group_id = group_id
        self.reply = reply.encode() if isinstance(reply, str) else reply
        self.tokens_per_event = 1
        self.error: EaglerayError | None = None
        self.refusal: Exception | None = None
        self.is_endless = False
        self.num_cached_tokens = 0
        self.requests: list[GenerationRequest] = []
        self.cancelled: list[str] = []
        self.open: dict[str, EventSink] = {}

    def submit(self, request: GenerationRequest, sink: EventSink) -> Placement:
        if self.refusal is not None:
            raise self.refusal
        self.requests.append(request)
        self.open[request.request_id] = sink
        for event in self._events(request):
            sink(StepEvents(events=[event]))
        if not self.is_endless:
            del self.open[request.request_id]
        return Placement.of(request)

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)
        if sink := self.open.pop(request_id, None):
            sink(StepEvents(events=[TokenEvent(request_id, [], finish_reason="cancelled")]))

    def load(self) -> EngineLoad:
        return EngineLoad(len(self.open), 0, 0, 8, 2, 4, 7, 1, 30, 20, 10)

    def status(self) -> GroupStatus:
        return status_of_group(self.group_id)

    def _events(self, request: GenerationRequest) -> Iterator[TokenEvent]:
        request_id, max_tokens = request.request_id, request.sampling.max_tokens
        tokens = list(self.reply[:max_tokens])
        for start in range(0, len(tokens), self.tokens_per_event):
            group = tokens[start : start + self.tokens_per_event]
            yield TokenEvent(
                request_id,
                group,
                logprobs=self._logprobs(request, group),
                num_cached_tokens=self.num_cached_tokens if start == 0 else 0,
            )
        if self.is_endless:
            return
        if self.error is not None:
            yield TokenEvent(request_id, [], error=ErrorInfo.of(self.error))
        elif len(self.reply) >= max_tokens:
            yield TokenEvent(request_id, [], finish_reason="length")
        else:
            yield TokenEvent(request_id, [], finish_reason="stop", stop_token_id=EOS)

    def _logprobs(self, request: GenerationRequest, tokens: list[int]) -> list[TokenLogprobs] | None:
        """Each token has -0.5, and the ones after it are the runners-up with -1, -2, ..."""
        num = request.sampling.logprobs
        if num is None:
            return None
        return [
            TokenLogprobs(-0.5, [token + i for i in range(num)], [-0.5, *(-float(i) for i in range(1, num))][:num])
            for token in tokens
        ]


class EngineGroup:
    """A SubmitTarget around a real engine in a thread. `breaks` has it end every request with an error."""

    def __init__(self, engine: Engine, group_id: str = "group-1") -> None:
        self.engine = engine
        self._status = status_of_group(group_id)
        self._thread = threading.Thread(target=engine.run, daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest, sink: EventSink) -> Placement:
        return self.engine.submit(request, sink)

    def cancel(self, request_id: str) -> None:
        self.engine.cancel(request_id)

    def load(self) -> EngineLoad:
        return self.engine.load()

    def status(self) -> GroupStatus:
        return self._status

    def breaks(self, error: EaglerayError) -> None:
        self.engine.close(error)

    def close(self) -> None:
        self.engine.close(ReplicaFailed("the test is over"))
        self._thread.join(timeout=10)
