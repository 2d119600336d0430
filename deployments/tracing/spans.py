"""The spans of one request, made in one go when it has ended.

    chat MODEL                     the gateway, from the request's arrival to its last byte
    +- prepare                     body, chat template, tokens
    +- route                       the search for a group; once for each choice
    |  +- hold                     no group could take it, so it waited
    +- group                       a group's part of the work
    |  +- queue, prefill, decode   as the group told, once more after each preemption
    +- resume                      the group was lost: the search for another; linked to the part that broke
    |  +- route
    +- group                       goes on with it; linked to the part before

No span has a word of a prompt or an answer, nor an error's message, which may quote them.
"""

from collections.abc import Sequence
from typing import NamedTuple

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from core.errors import RequestError
from deployments.gateway.generation import Choice
from deployments.groups.trail import Part, Phase, Search
from deployments.http.boundary import CLIENT_LEFT
from deployments.openai.job import Job
from deployments.tracing import names
from deployments.tracing.request_trail import RequestTrail

Attributes = dict[str, AttributeValue]


class _Made(NamedTuple):
    """A span that was written."""

    context: Context
    """Makes it the parent of others."""
    identity: SpanContext


class SpanWriter:
    """Writes the spans of one request."""

    def __init__(self, tracer: trace.Tracer, trail: RequestTrail) -> None:
        self._tracer = tracer
        self._trail = trail

    def write(self, parent: Context) -> None:
        """Write all of them, under `parent`."""
        trail, job = self._trail, self._trail.job
        name = trail.operation if job is None else f"{trail.operation} {job.model}"
        is_failed = trail.error is not None and not isinstance(trail.error, RequestError)
        request = self._write(
            name,
            parent,
            trail.received_s,
            trail.ended_s,
            _request_attributes(trail, job),
            is_failed=is_failed and trail.error_type != CLIENT_LEFT,
        )
        prepared_s = trail.ended_s if trail.prepared_s is None else trail.prepared_s
        self._write(names.PREPARE, request.context, trail.received_s, prepared_s, {})
        choices = [] if job is None else job.choices
        for choice in choices:
            self._write_choice(choice, request.context, {names.CHOICE: choice.index} if len(choices) > 1 else {})

    def _write_choice(self, choice: Choice, request: Context, shared: Attributes) -> None:
        parts = iter(choice.trail.parts)
        former: SpanContext | None = None
        for index, search in enumerate(choice.trail.searches):
            self._write_search(search, request, former, shared)
            if search.group_id is not None:
                part = next(parts)
                former = self._write_part(part, request, former, {**shared, names.PART: index + 1})

    def _write_search(self, search: Search, parent: Context, former: SpanContext | None, shared: Attributes) -> None:
        ended_s = self._trail.ended_s if search.ended_s is None else search.ended_s
        if search.breakage is not None:
            attributes = {**shared, **_resume_attributes(search)}
            parent = self._write(names.RESUME, parent, search.breakage.at_s, ended_s, attributes, former).context
        route = self._write(
            names.ROUTE,
            parent,
            search.began_s,
            ended_s,
            {**shared, **_route_attributes(search)},
            is_failed=search.error is not None,
        )
        if search.held_from_s is not None:
            held_until_s = ended_s if search.held_until_s is None else search.held_until_s
            self._write(names.HOLD, route.context, search.held_from_s, held_until_s, shared)

    def _write_part(self, part: Part, parent: Context, former: SpanContext | None, shared: Attributes) -> SpanContext:
        ended_s = self._trail.ended_s if part.ended_s is None else part.ended_s
        group = self._write(
            names.GROUP,
            parent,
            part.began_s,
            ended_s,
            {**shared, **_part_attributes(part)},
            former,
            SpanKind.CLIENT,
            is_failed=part.error is not None,
        )
        for phase in part.phases():
            self._write(phase.name, group.context, phase.began_s, phase.ended_s, {**shared, **_phase_attributes(phase)})
        return group.identity

    def _write(
        self,
        name: str,
        parent: Context,
        began_s: float,
        ended_s: float,
        attributes: Attributes,
        linked: SpanContext | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        is_failed: bool = False,
    ) -> _Made:
        links = () if linked is None else (Link(linked),)
        started_ns = self._trail.epoch_ns(began_s)
        span = self._tracer.start_span(name, parent, kind, attributes, links, start_time=started_ns)
        if is_failed:
            span.set_status(Status(StatusCode.ERROR))
        span.end(self._trail.epoch_ns(ended_s))
        return _Made(trace.set_span_in_context(span, parent), span.get_span_context())


def _request_attributes(trail: RequestTrail, job: Job | None) -> Attributes:
    attributes: Attributes = {names.OPERATION: trail.operation, names.PROVIDER: "eagleray"}
    if trail.error_type is not None:
        attributes[names.ERROR] = trail.error_type
    if job is None:
        return attributes
    usage = job.usage
    attributes |= {
        names.REQUEST_MODEL: job.fields.model,
        names.RESPONSE_MODEL: job.model,
        names.RESPONSE_ID: job.response_id,
        names.REQUEST_STREAM: bool(job.fields.stream),
        names.REQUEST_CHOICES: job.fields.num_completions,
        names.REQUEST_MAX_TOKENS: max(choice.max_tokens for choice in job.choices),
        names.INPUT_TOKENS: usage.prompt_tokens,
        names.OUTPUT_TOKENS: usage.completion_tokens,
        names.CACHED_INPUT_TOKENS: usage.prompt_tokens_details.cached_tokens,
        names.RESUMES: sum(choice.trail.num_resumes for choice in job.choices),
    }
    if reasons := [choice.finish_reason for choice in job.choices if choice.finish_reason is not None]:
        attributes[names.FINISH_REASONS] = reasons
    first_s = _first_token_s(job.choices)
    if first_s is not None:
        attributes[names.TIME_TO_FIRST_TOKEN] = first_s - trail.received_s
    return attributes


def _first_token_s(choices: Sequence[Choice]) -> float | None:
    return min((choice.first_token_at_s for choice in choices if choice.first_token_at_s is not None), default=None)


def _route_attributes(search: Search) -> Attributes:
    if search.group_id is None:
        return {names.ERROR: search.error or CLIENT_LEFT}
    return {
        names.GROUP_ID: search.group_id,
        names.REFUSALS: search.num_refusals,
        names.EXPECTED_CACHED_TOKENS: search.num_cached_tokens,
    }


def _resume_attributes(search: Search) -> Attributes:
    assert search.breakage is not None, "only a search after a breakage resumes anything"
    attributes: Attributes = {
        names.RESUME_FROM: search.breakage.group_id,
        names.RESUME_CAUSE: search.breakage.cause,
        names.RESUME_TOKENS: search.breakage.num_tokens,
    }
    if search.group_id is not None:
        attributes[names.RESUME_TO] = search.group_id
    return attributes


def _part_attributes(part: Part) -> Attributes:
    attributes: Attributes = {names.GROUP_ID: part.group_id, names.PART_TOKENS: part.num_tokens}
    if part.timings is not None:
        attributes[names.PREEMPTIONS] = part.timings.num_preemptions
    if part.error is not None:
        attributes[names.ERROR] = part.error
    return attributes


def _phase_attributes(phase: Phase) -> Attributes:
    if phase.name == "queue":
        return {names.KV_WAIT: phase.stay.kv_wait_s}
    if phase.name == "prefill":
        return {names.STAY_TOKENS: phase.stay.num_tokens, names.STAY_CACHED_TOKENS: phase.stay.num_cached_tokens}
    return {}
