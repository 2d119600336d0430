"""One request is one trace, from the client's span over Serve's to the phases in a group: red if a link is lost, a span
lies outside of its parent, a resume does not show, or a word of a prompt leaves the gateway."""

import os
import signal
import time

import pytest

from tests.support.raw_streams import RawStream
from tests.support.serve_instance import RANK_TITLE, model_args, wait_until
from tests.support.spans import CLIENT_SPAN_ID, traceparent

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

MODEL = "smollm2-traced"
NUM_TOKENS = 160
PLAIN_TRACE, RESUMED_TRACE, UNSAMPLED_TRACE, LAST_TRACE = (digit * 32 for digit in "1234")
PROMPT = [{"role": "user", "content": "Describe a zeppelin over Reykjavik."}]
PROXY_SPAN = "proxy_http_request"
SERVE_SPANS = ("replica_handle_request", "route_to_replica", PROXY_SPAN)


class TracedFleet:
    """Two groups behind the shared gateway."""

    def __init__(self, served):
        self.served = served
        self._others = set(served.processes(RANK_TITLE))
        served.deploy(MODEL, model_args("quickstart.yaml", name=MODEL, parallel={"threads_per_rank": 1}), 2)

    def busy_rank(self):
        """Return the process that computes while the others wait."""
        ranks = [process for pid, process in self.served.processes(RANK_TITLE).items() if pid not in self._others]
        before_s = {rank.pid: rank.cpu_times().user for rank in ranks}
        time.sleep(0.3)
        return max(ranks, key=lambda rank: rank.cpu_times().user - before_s[rank.pid]).pid

    def tree(self, trace_id):
        """Return the trace once it is whole: the proxy's span, which ends last, and the parent of every other one."""
        collector = self.served.collector

        def is_whole():
            tree = collector.tree(trace_id)
            known = {CLIENT_SPAN_ID, *(span.span_id for span in tree.spans)}
            has_ends = tree.named(f"chat {MODEL}") and any(span.name.startswith(PROXY_SPAN) for span in tree.spans)
            return has_ends and all(span.parent_id in known for span in tree.spans)

        wait_until(is_whole, 30, "the trace has come")
        return collector.tree(trace_id)


@pytest.fixture(scope="module")
def fleet(served):
    yield TracedFleet(served)
    served.delete(MODEL)


def test_a_request_is_one_trace_from_the_clients_span_to_the_phases_in_a_group(fleet):
    answer = fleet.served.client().chat.completions.create(
        model=MODEL,
        messages=PROMPT,
        max_tokens=24,
        temperature=0,
        extra_headers=traceparent(PLAIN_TRACE),
        extra_body={"include_timings": True},
    )
    tree = fleet.tree(PLAIN_TRACE)
    root, group = tree.only(f"chat {MODEL}"), tree.only("group")

    ancestors = tree.ancestors(root)
    assert [name.split()[0] for name in ancestors] == [*SERVE_SPANS]
    assert tree.named(ancestors[-1])[0].parent_id == CLIENT_SPAN_ID
    assert [span.name for span in tree.children(root)] == ["prepare", "route", "group"]
    assert [span.name for span in tree.children(group)] == ["queue", "prefill", "decode"]
    tree.check_nested(root)
    replica = tree.parent(root)
    assert replica.began_ns <= root.began_ns <= root.ended_ns <= replica.ended_ns

    usage = answer.usage
    assert root.attributes["gen_ai.response.id"] == answer.id
    assert root.attributes["gen_ai.usage.input_tokens"] == usage.prompt_tokens
    assert root.attributes["gen_ai.usage.output_tokens"] == usage.completion_tokens
    assert root.attributes["gen_ai.response.finish_reasons"] == (answer.choices[0].finish_reason,)
    assert fleet.served.collector.services() == {"eagleray"}

    timings = answer.model_extra["timings"]
    assert timings["group"] == group.attributes["eagleray.group.id"]
    for phase in ("prefill", "decode"):
        (span,) = (span for span in tree.children(group) if span.name == phase)
        assert (span.ended_ns - span.began_ns) / 1e9 == pytest.approx(timings[f"{phase}_s"], abs=1e-4)


def test_a_resumed_stream_shows_which_group_died_and_which_went_on(fleet):
    stream = RawStream(fleet.served.url, MODEL, NUM_TOKENS, messages=PROMPT, headers=traceparent(RESUMED_TRACE))
    assert stream.has_begun.wait(60)
    os.kill(fleet.busy_rank(), signal.SIGKILL)
    assert stream.ended is None, "too late to disturb it"
    assert stream.wait(90).is_done
    tree = fleet.tree(RESUMED_TRACE)
    root, resume = tree.only(f"chat {MODEL}"), tree.only("resume")
    broken, heir = tree.named("group")
    assert (broken.is_error, heir.is_error) == (True, False)
    assert resume.attributes["eagleray.resume.from_group"] == broken.attributes["eagleray.group.id"]
    assert resume.attributes["eagleray.resume.to_group"] == heir.attributes["eagleray.group.id"]
    assert resume.links == heir.links == (broken.span_id,)
    assert tree.parent(resume) == root
    assert [tree.parent(span).name for span in tree.named("route")] == [root.name, "resume"]
    given = [span.attributes["eagleray.part.output_tokens"] for span in (broken, heir)]
    assert resume.attributes["eagleray.resume.output_tokens"] == given[0] > 0
    assert sum(given) == NUM_TOKENS
    tree.check_nested(root)


def test_no_word_of_prompts_or_answers_is_exported_and_nothing_that_was_not_sampled(fleet):
    client = fleet.served.client()
    unsampled = traceparent(UNSAMPLED_TRACE, is_sampled=False)
    for headers in ({}, unsampled, traceparent(LAST_TRACE)):
        client.chat.completions.create(model=MODEL, messages=PROMPT, max_tokens=8, extra_headers=headers)
    fleet.tree(LAST_TRACE)
    collector = fleet.served.collector
    exported = b"".join(collector.bodies)
    assert MODEL.encode() in exported
    assert not [word for word in (b"Describe", b"zeppelin", b"Reykjavik") if word in exported]
    assert {span.trace_id for span in collector.spans} <= {PLAIN_TRACE, RESUMED_TRACE, LAST_TRACE}
