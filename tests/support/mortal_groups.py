"""Groups that die while they generate, and whose tokens depend on nothing but the request: prompt, seed, position."""

import random
from collections.abc import Iterator, Sequence

from cluster.status import GroupStatus
from core.errors import Draining, EaglerayError, ErrorInfo, NotReady, RankDied, ReplicaFailed
from engine.request import EngineLoad, EventSink, GenerationRequest, StepEvents, TokenEvent
from parallel.plan import TokenLogprobs
from tests.support.byte_tokenizer import EOS
from tests.support.fake_groups import status_of_group

REPLY = "Der Käse ist grün, sagt die Maus; 🧀 aber süß. STOP Und dann? "
DEATHS: Sequence[EaglerayError] = (
    RankDied("rank 1 was killed"),
    ReplicaFailed("the connection broke"),
    Draining("the group shut down"),
)


class Fate:
    """How many tokens each attempt of each choice gets before its group dies; attempts beyond the list live on."""

    def __init__(self, lives: Sequence[Sequence[int]] = ()) -> None:
        self._lives = lives

    def num_tokens(self, request_id: str) -> int | None:
        """Return the tokens left to this attempt; None: as many as it wants."""
        base, _, attempt = request_id.partition("~")
        lives = self._lives[int(base.rsplit("-", 1)[1]) % len(self._lives)] if self._lives else ()
        number = int(attempt or 1) - 1
        return lives[number] if number < len(lives) else None


class MortalGroup:
    """A SubmitTarget that answers at once, in events of one to three tokens, and dies of a request as `fate` has it."""

    def __init__(
        self,
        group_id: str,
        fate: Fate,
        length: int = 60,
        max_requests: int | None = None,
        deaths: Sequence[EaglerayError] = DEATHS,
    ) -> None:
        """After `max_requests` it takes no more."""
        self.group_id = group_id
        self.requests: list[GenerationRequest] = []
        self.cancelled: list[str] = []
        self._fate = fate
        self._length = length
        self._max_requests = max_requests
        self._deaths = deaths
        self._dice = random.Random(group_id)

    def submit(self, request: GenerationRequest, sink: EventSink) -> None:
        if len(self.requests) == self._max_requests:
            raise NotReady(f"{self.group_id} is restarting")
        self.requests.append(request)
        emitted = request.token_ids[request.num_prompt_tokens :]
        assert emitted == [self._token(request, position) for position in range(len(emitted))], "not what was sent"
        for event in self._events(request):
            sink(StepEvents(events=[event]))

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)

    def load(self) -> EngineLoad:
        return EngineLoad(0, 0, 0, 8, 8, 0, 0, 0, 0, 0, 0)

    def status(self) -> GroupStatus:
        return status_of_group(self.group_id)

    def _events(self, request: GenerationRequest) -> Iterator[TokenEvent]:
        start = len(request.token_ids) - request.num_prompt_tokens
        last = min(self._length, request.sampling.max_tokens)
        life = self._fate.num_tokens(request.request_id)
        end = last if life is None else min(last, start + life)
        position = start
        while position < end:
            positions = range(position, min(end, position + self._dice.randint(1, 3)))
            position = positions.stop
            tokens = [self._token(request, at) for at in positions]
            logprobs = (
                [self._logprobs(request, at) for at in positions] if request.sampling.logprobs is not None else None
            )
            num_cached = 1 if positions.start == start else 0
            yield TokenEvent(request.request_id, tokens, logprobs=logprobs, num_cached_tokens=num_cached)
        if life is not None:
            yield TokenEvent(request.request_id, [], error=ErrorInfo.of(self._dice.choice(self._deaths)))
        elif self._length >= request.sampling.max_tokens:
            yield TokenEvent(request.request_id, [], finish_reason="length")
        else:
            yield TokenEvent(request.request_id, [], finish_reason="stop", stop_token_id=EOS)

    def _token(self, request: GenerationRequest, position: int) -> int:
        text = REPLY.encode()
        return text[(position + request.sampling.seed) % len(text)]

    def _logprobs(self, request: GenerationRequest, position: int) -> TokenLogprobs:
        token, num = self._token(request, position), request.sampling.logprobs or 0
        return TokenLogprobs(-position / 8, [token + i for i in range(num)], [-position / 8 - i for i in range(num)])
