"""The spans of a request: red if one is missing, has a wrong parent, lies outside of it, or tells a secret."""

import contextlib
import json

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import StatusCode, format_span_id, format_trace_id
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from core.errors import QueueFull, RankDied
from deployments.tracing.request_trail import RequestTrails
from deployments.tracing.serve_tracer import ServeTracer
from tests.support.engines import make_config, make_engine, tiny_spec
from tests.support.fake_groups import EngineGroup, ScriptedGroup
from tests.support.fake_ranks import FakeRankPool
from tests.support.gateways import serving
from tests.support.spans import CLIENT_SPAN_ID, TRACE_ID, SpanSeen, SpanTree, traceparent

SECRET = "the launch code is zebra"


class Recorder:
    """A Serve process's OpenTelemetry, as far as a gateway sees it; nothing is sampled unless a parent is."""

    def __init__(self, ratio=0.0):
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(sampler=ParentBasedTraceIdRatio(ratio))
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = provider.get_tracer("test")
        self.trails = RequestTrails(ServeTracer(self.tracer))

    @property
    def raw(self):
        return self._exporter.get_finished_spans()

    @property
    def spans(self):
        return [seen(span) for span in self.raw]

    @property
    def tree(self):
        return SpanTree(self.spans)


def seen(span):
    return SpanSeen(
        span.name,
        format_trace_id(span.context.trace_id),
        format_span_id(span.context.span_id),
        format_span_id(span.parent.span_id) if span.parent else "",
        span.start_time,
        span.end_time,
        dict(span.attributes),
        tuple(format_span_id(link.context.span_id) for link in span.links),
        span.status.status_code is StatusCode.ERROR,
    )


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def engine_group():
    group = EngineGroup(make_engine(FakeRankPool(vocab_size=260), config=make_config(), spec=tiny_spec(vocab_size=260)))
    yield group
    group.close()


@contextlib.contextmanager
def serve_span(recorder, trace_id):
    """Be inside a span of the client's trace, as Serve's replica is; yields its id."""
    context = TraceContextTextMapPropagator().extract(traceparent(trace_id))
    with recorder.tracer.start_as_current_span("replica", context) as span:
        yield format_span_id(span.get_span_context().span_id)


def chat(client, text="Hi", headers=None, **fields):
    body = {"model": "tiny", "messages": [{"role": "user", "content": text}], **fields}
    return client.post("/v1/chat/completions", body, headers or traceparent())


def test_a_request_is_a_tree_of_what_happened_to_it(run, recorder, engine_group):
    async def main():
        async with serving(engine_group, trails=recorder.trails) as client:
            answer = await chat(client, max_tokens=6)
        tree = recorder.tree
        root = tree.only("chat tiny")
        assert root.parent_id == CLIENT_SPAN_ID
        assert [span.name for span in tree.children(root)] == ["prepare", "route", "group"]
        group = tree.only("group")
        assert [span.name for span in tree.children(group)] == ["queue", "prefill", "decode"]
        tree.check_nested(root)
        usage = answer.json()["usage"]
        assert root.attributes == {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "eagleray",
            "gen_ai.request.model": "tiny",
            "gen_ai.response.model": "tiny",
            "gen_ai.response.id": answer.json()["id"],
            "gen_ai.request.stream": False,
            "gen_ai.request.choice.count": 1,
            "gen_ai.request.max_tokens": 6,
            "gen_ai.usage.input_tokens": usage["prompt_tokens"],
            "gen_ai.usage.output_tokens": 6,
            "gen_ai.usage.cache_read.input_tokens": 0,
            "gen_ai.response.finish_reasons": ("length",),
            "gen_ai.server.time_to_first_token": root.attributes["gen_ai.server.time_to_first_token"],
            "eagleray.resumes": 0,
        }
        seconds = (root.ended_ns - root.began_ns) / 1e9
        assert 0 < root.attributes["gen_ai.server.time_to_first_token"] < seconds
        assert tree.only("route").attributes["eagleray.group.id"] == "group-1"
        assert group.attributes["eagleray.part.output_tokens"] == 6
        assert tree.only("prefill").attributes["eagleray.prefill.tokens"] == usage["prompt_tokens"]

    run(main())


def test_each_choice_has_its_own_route_and_group(run, recorder):
    async def main():
        async with serving(ScriptedGroup(), trails=recorder.trails) as client:
            await chat(client, n=2)
        assert [span.attributes["eagleray.choice"] for span in recorder.tree.named("route")] == [0, 1]
        assert len(recorder.tree.named("group")) == 2

    run(main())


def test_a_resumed_stream_shows_who_died_who_went_on_and_links_the_parts(run, recorder):
    async def main():
        dying, heir = ScriptedGroup("Hel", "g1"), ScriptedGroup("Hello!", "g2")
        dying.error = RankDied("a rank died")
        heir.refusal = QueueFull("full", retry_after_s=1)
        async with serving(dying, heir, trails=recorder.trails) as client:
            heir.refusal = None
            dying.reply, heir.reply = b"Hel", b"lo!"
            answer = await chat(client)
            while not recorder.tree.named("resume"):  # the other group was asked first
                answer = await chat(client)
        tree = SpanTree(recorder.spans)
        resume = tree.only("resume")
        root = tree.parent(resume)
        broken, healthy = [span for span in tree.children(root) if span.name == "group"]
        assert answer.status == 200
        assert (broken.attributes["error.type"], broken.is_error, healthy.is_error) == ("rank_died", True, False)
        assert broken.links == ()
        assert healthy.links == resume.links == (broken.span_id,)
        assert resume.attributes == {
            "eagleray.resume.from_group": "g1",
            "eagleray.resume.to_group": "g2",
            "eagleray.resume.cause": "rank_died",
            "eagleray.resume.output_tokens": 3,
        }
        (route,) = tree.children(resume)
        assert (route.name, route.attributes["eagleray.group.id"]) == ("route", "g2")
        assert root.attributes["eagleray.resumes"] == 1
        tree.check_nested(root)

    run(main())


def test_a_refused_request_has_the_code_of_its_error_and_no_more(run, recorder):
    async def main():
        group = ScriptedGroup()
        group.refusal = QueueFull("full", retry_after_s=1)
        async with serving(group, trails=recorder.trails) as client:
            answer = await chat(client)
        assert answer.status == 429
        root, route = recorder.tree.only("chat tiny"), recorder.tree.only("route")
        assert root.attributes["error.type"] == route.attributes["error.type"] == "queue_full"
        assert root.is_error

    run(main())


def test_a_callers_own_fault_is_no_failure_of_the_server(run, recorder):
    async def main():
        async with serving(ScriptedGroup(), trails=recorder.trails) as client:
            await chat(client, temperature=9)
        root = recorder.tree.only("chat")
        assert root.attributes["error.type"] == "invalid_request"
        assert not root.is_error

    run(main())


def test_a_client_that_leaves_is_no_failure_either(run, recorder):
    async def main():
        group = ScriptedGroup()
        group.is_endless = True
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
        async with serving(group, trails=recorder.trails) as client:
            await client.call(
                "POST",
                "/v1/chat/completions",
                body,
                traceparent(),
                leave_when=lambda answer: len(answer.parts) > 2,
            )
        root = recorder.tree.only("chat tiny")
        assert root.attributes["error.type"] == "client_left"
        assert not root.is_error
        recorder.tree.check_nested(root)

    run(main())


@pytest.mark.parametrize("fault", [{}, {"temperature": 9}, {"stop": SECRET}, {SECRET: 1}, {"seed": SECRET}])
def test_no_word_of_prompt_answer_or_request_is_in_any_span(run, recorder, fault):
    async def main():
        async with serving(ScriptedGroup(f"Sure: {SECRET}"), trails=recorder.trails) as client:
            await chat(client, SECRET, **fault)
        assert len(recorder.raw) >= 2
        exported = json.dumps([json.loads(span.to_json()) for span in recorder.raw])
        assert "launch" not in exported
        assert "zebra" not in exported

    run(main())


@pytest.mark.parametrize("headers", [{}, {"traceparent": "garbage"}, traceparent(is_sampled=False)])
def test_a_request_outside_of_a_sampled_trace_has_no_spans_and_begins_no_trace(run, headers):
    recorder = Recorder(ratio=1.0)

    async def main():
        async with serving(ScriptedGroup(), trails=recorder.trails) as client:
            answer = await chat(client, headers={"x-any": "1", **headers})
        assert answer.status == 200
        assert recorder.raw == ()

    run(main())


def test_spans_hang_under_serves_own_span_if_it_is_of_the_clients_trace(run):
    recorder = Recorder()

    async def main():
        async with serving(ScriptedGroup(), trails=recorder.trails) as client:
            with serve_span(recorder, TRACE_ID) as replica:
                await chat(client)
        assert recorder.tree.parent(recorder.tree.only("chat tiny")).span_id == replica
        assert {span.trace_id for span in recorder.spans} == {TRACE_ID}

    run(main())


def test_a_client_that_wants_no_trace_gets_none_though_serve_begins_one_of_its_own(run):
    recorder = Recorder(ratio=1.0)

    async def main():
        async with serving(ScriptedGroup(), trails=recorder.trails) as client:
            with recorder.tracer.start_as_current_span("replica"):
                await chat(client, headers=traceparent(is_sampled=False))
        assert [span.name for span in recorder.raw] == ["replica"]

    run(main())


def test_without_a_client_span_serves_decision_counts(run):
    recorder = Recorder(ratio=1.0)

    async def main():
        async with serving(ScriptedGroup(), trails=recorder.trails) as client:
            with recorder.tracer.start_as_current_span("replica"):
                await chat(client, headers={"x-any": "1"})
        (trace_id,) = {span.trace_id for span in recorder.spans}
        tree = SpanTree(recorder.spans, trace_id)
        assert tree.parent(tree.only("chat tiny")).name == "replica"

    run(main())
