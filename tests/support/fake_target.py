"""A SubmitTarget whose events the test sends by hand, batched by sink as an engine does."""

from collections.abc import Callable

from cluster.status import ChannelAddress, GroupState, GroupStatus
from core.errors import EaglerayError
from engine.request import EngineLoad, EventSink, GenerationRequest, Placement, StepEvents, TokenEvent
from parallel.sampling.params import SamplingParams


def generation_request(request_id: str, num_prompt_tokens: int = 4, max_tokens: int = 16) -> GenerationRequest:
    return GenerationRequest(
        request_id=request_id,
        token_ids=list(range(num_prompt_tokens)),
        num_prompt_tokens=num_prompt_tokens,
        sampling=SamplingParams(max_tokens=max_tokens, seed=1),
    )


def group_status(
    group_id: str = "group-1",
    model: str = "tiny",
    state: GroupState = "ready",
    channel: ChannelAddress | None = None,
    generation: int = 1,
    max_model_len: int = 128,
) -> GroupStatus:
    return GroupStatus(
        group_id=group_id,
        model=model,
        application="app",
        state=state,
        generation=generation,
        world_size=1,
        channel=channel,
        model_source="/models/tiny",
        max_model_len=max_model_len,
    )


def engine_load(num_outstanding_tokens: int = 0, num_running: int = 0, num_waiting: int = 0) -> EngineLoad:
    return EngineLoad(num_running, num_waiting, num_outstanding_tokens, 8, 8, 0, 0, 0, 0, 0, 0)


class FakeTarget:
    def __init__(self, group_id: str = "group-1") -> None:
        self.requests: dict[str, GenerationRequest] = {}
        self.sinks: dict[str, EventSink] = {}
        self.cancelled: list[str] = []
        self.refusal: EaglerayError | Exception | None = None
        self.events_on_submit: list[TokenEvent] = []
        self.on_submit: Callable[[], object] = lambda: None
        self.current_load: EngineLoad | None = engine_load()
        self.current_status = group_status(group_id)

    def submit(self, request: GenerationRequest, sink: EventSink) -> Placement:
        if self.refusal is not None:
            raise self.refusal
        self.requests[request.request_id] = request
        self.sinks[request.request_id] = sink
        self.on_submit()
        if self.events_on_submit:
            sink(StepEvents(events=self.events_on_submit))
        return Placement.of(request)

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)
        if request_id in self.sinks:
            self.step([TokenEvent(request_id, [], finish_reason="cancelled")])

    def load(self) -> EngineLoad | None:
        return self.current_load

    def status(self) -> GroupStatus:
        return self.current_status

    def step(self, events: list[TokenEvent]) -> None:
        """Send one step's events, one call for each sink."""
        batches: dict[int, tuple[EventSink, list[TokenEvent]]] = {}
        for event in events:
            sink = self.sinks[event.request_id]
            if event.is_terminal:
                del self.sinks[event.request_id]
            batches.setdefault(id(sink), (sink, []))[1].append(event)
        for sink, batch in batches.values():
            sink(StepEvents(events=batch))
