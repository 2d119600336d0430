"""What one request adds to the metrics of its gateway, however it ends."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from deployments.http.boundary import how_it_ended
from deployments.metrics import gateway_rows as rows
from deployments.metrics.store import Distribution, Distributions, Numbers
from engine.request_timings import RequestTimings

UNKNOWN_MODEL = "unknown"
"""Names that callers invent do not become labels."""
FINISH_REASONS = ("stop", "length", "abort")
TOKEN_TYPES = ("input", "cached_input", "output")


class MeasuredChoice(Protocol):
    """What is read of a choice when its request has ended, and set when it begins."""

    token_gaps: Distribution | None
    """Takes the time between each two of its tokens."""
    first_token_at_s: float | None
    num_cached_tokens: int
    timings: RequestTimings | None
    """As the last group told them; of a request that was left early, those up to its first token."""

    @property
    def finish_reason(self) -> str | None:
        """Why it ended, if it did by itself."""
        ...

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of its prompt."""
        ...

    @property
    def num_tokens(self) -> int:
        """Tokens it generated."""
        ...


class RequestMetrics:
    """Everything about requests that one gateway counts."""

    def __init__(self) -> None:
        self.time_to_first_token = Distributions.bounded(rows.TIME_TO_FIRST_TOKEN)
        self.inter_token_latency = Distributions.bounded(rows.INTER_TOKEN_LATENCY)
        self.time_per_output_token = Distributions.bounded(rows.TIME_PER_OUTPUT_TOKEN)
        self.request_duration = Distributions.bounded(rows.REQUEST_DURATION)
        self.queue_time = Distributions.bounded(rows.QUEUE_TIME)
        self.prefill_time = Distributions.bounded(rows.PREFILL_TIME)
        self.decode_time = Distributions.bounded(rows.DECODE_TIME)
        self.token_usage = Distributions.bounded(rows.TOKEN_USAGE)
        self.requests = Numbers.bounded(rows.REQUESTS)
        self.choices = Numbers.bounded(rows.CHOICES)
        self.requests_open = Numbers.bounded(rows.REQUESTS_OPEN)
        self.tokens = Numbers.bounded(rows.TOKENS)
        self.tenant_tokens = Numbers.bounded(rows.TENANT_TOKENS)

    def all_distributions(self) -> list[Distributions]:
        """Return every histogram."""
        per_model = self.per_model_distributions()
        return [*per_model, self.request_duration, self.token_usage]

    def per_model_distributions(self) -> list[Distributions]:
        """Return those with no label but the model."""
        times = (self.time_to_first_token, self.inter_token_latency, self.time_per_output_token)
        return [*times, self.queue_time, self.prefill_time, self.decode_time]

    def all_numbers(self) -> list[Numbers]:
        """Return every counter and gauge."""
        return [self.requests, self.choices, self.requests_open, self.tokens, self.tenant_tokens]

    def show_operation(self, operation: str) -> None:
        """Have an operation's gauge be there before its first request."""
        self.requests_open.show([(operation,)])

    def show_model(self, model: str, operations: Sequence[str]) -> None:
        """Have a model's series be there before its first request."""
        for distributions in self.per_model_distributions():
            distributions.of(model)
        for operation in operations:
            self.request_duration.of(model, operation)
        for kind in ("input", "output"):
            self.token_usage.of(model, kind)
        self.requests.show((model, operation, "ok") for operation in operations)
        self.choices.show((model, reason) for reason in FINISH_REASONS)
        self.tokens.show((model, kind) for kind in TOKEN_TYPES)


class RequestRecord:
    """From a request's arrival to its end; the endpoint says `started` once it knows what it runs."""

    def __init__(self, metrics: RequestMetrics, operation: str, tenant: str) -> None:
        """`tenant`: whose tokens they are; empty: nobody's in particular."""
        self._metrics = metrics
        self._operation = operation
        self._tenant = tenant
        self._model = UNKNOWN_MODEL
        self._choices: Sequence[MeasuredChoice] = ()
        self._num_completions = 1
        self.received_s = 0.0
        """When the request came, on the monotonic clock."""

    def started(self, model: str, choices: Sequence[MeasuredChoice], num_completions: int) -> None:
        """Take note of the served model and the choices, `num_completions` neighbours to a prompt; begin to measure."""
        self._model, self._choices, self._num_completions = model, choices, num_completions
        gaps = self._metrics.inter_token_latency.of(model)
        for choice in choices:
            choice.token_gaps = gaps

    def __enter__(self) -> Self:
        self.received_s = time.monotonic()
        self._metrics.requests_open.add(self._operation)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        metrics, ended_s = self._metrics, time.monotonic()
        metrics.requests_open.add(self._operation, amount=-1)
        metrics.requests.add(self._model, self._operation, how_it_ended(error) or "ok")
        metrics.request_duration.of(self._model, self._operation).observe(ended_s - self.received_s)
        for choice in self._choices:
            self._observe_choice(choice, ended_s)
        if self._choices:
            self._count_tokens()

    def _observe_choice(self, choice: MeasuredChoice, ended_s: float) -> None:
        metrics, model = self._metrics, self._model
        metrics.choices.add(model, choice.finish_reason or "abort")
        if choice.first_token_at_s is None:
            return
        metrics.time_to_first_token.of(model).observe(choice.first_token_at_s - self.received_s)
        if choice.num_tokens > 1:
            per_token_s = (ended_s - choice.first_token_at_s) / (choice.num_tokens - 1)
            metrics.time_per_output_token.of(model).observe(per_token_s)
        if choice.timings is not None:
            metrics.queue_time.of(model).observe(choice.timings.queued_s)
            metrics.prefill_time.of(model).observe(choice.timings.prefill_s)
            metrics.decode_time.of(model).observe(choice.timings.decode_s)

    def _count_tokens(self) -> None:
        first_of_prompt = self._choices[:: self._num_completions]
        num_input = sum(choice.num_prompt_tokens for choice in first_of_prompt)
        num_cached = sum(choice.num_cached_tokens for choice in first_of_prompt)
        num_output = sum(choice.num_tokens for choice in self._choices)
        metrics = self._metrics
        for kind, count in zip(TOKEN_TYPES, (num_input, num_cached, num_output), strict=True):
            metrics.tokens.add(self._model, kind, amount=count)
        for kind, count in (("input", num_input), ("output", num_output)):
            metrics.token_usage.of(self._model, kind).observe(count)
            if self._tenant:
                metrics.tenant_tokens.add(self._tenant, kind, amount=count)
