"""Whether a server answers: one token of every model, a stream that comes as it is made, metrics that can be read."""

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from deployments.doctor.finding import Finding, note, ok, problem, warning
from deployments.doctor.server.asking import Answer, Server, Unreachable

SLOW_S = 5.0
MANY_EVENTS = 8
"""A stream of fewer says nothing about buffers."""
LONG_S = 0.25
"""Nor does one that was over sooner."""
_PROMPT = "1, 2, 3, 4, 5,"
_STREAM_TOKENS = 48


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class _Error(msgspec.Struct):
    message: str


class _Refusal(msgspec.Struct):
    error: _Error


class StreamFacts(NamedTuple):
    """How a stream of server-sent events came."""

    status: int
    content_type: str
    num_events: int
    is_complete: bool
    """It ended in [DONE]."""
    arrivals_s: tuple[float, ...]
    encoding: str
    """Content-Encoding; empty: none."""
    said: str
    """The beginning of what came, for when it is no stream."""


def model_names(answer: Answer) -> list[str]:
    """Return the models in an answer of /v1/models; none if it is something else."""
    try:
        return [model.id for model in msgspec.json.decode(answer.body, type=_Models).data]
    except msgspec.DecodeError:
        return []


def ask_all(server: Server) -> Iterator[Finding]:
    """Ask each model for a token and the first for a stream; yield how it went."""
    names = model_names(server.get("/v1/models"))
    for name in names:
        body = {"model": name, "prompt": _PROMPT, "max_tokens": 1, "temperature": 0}
        try:
            yield from check_completion(name, server.post("/v1/completions", body))
        except Unreachable as error:
            yield problem("server.completion", f"{name}: {error}", "it hangs; look at the group's state and log")
    for name in names[:1]:
        body = {"model": name, "prompt": _PROMPT, "max_tokens": _STREAM_TOKENS, "temperature": 0, "stream": True}
        yield from check_stream(name, stream_facts(server.post("/v1/completions", body)))


def check_completion(model: str, answer: Answer) -> Iterator[Finding]:
    """Yield whether one token came, and how long it took."""
    if answer.status == 429:
        yield warning("server.completion", f"{model}: refused for now (429): {reason_of(answer)}", _BUSY)
    elif answer.status == 503:
        yield warning("server.completion", f"{model}: cannot answer now (503): {reason_of(answer)}", _NOT_READY)
    elif answer.status != 200:
        yield problem(
            "server.completion", f"{model}: {answer.status}: {reason_of(answer)}", "the message says what is wrong"
        )
    elif answer.total_s > SLOW_S:
        yield warning("server.completion", f"{model}: one token took {answer.total_s:.1f} s", _BUSY)
    else:
        yield ok("server.completion", f"{model}: one token in {1e3 * answer.total_s:.0f} ms")


_BUSY = "the server has more work than it can do: add groups, or see docs/load.md"
_NOT_READY = "wait until a group is ready; see server.groups"


def stream_facts(answer: Answer) -> StreamFacts:
    """Return what the stream's arrival tells."""
    events = [line for line in answer.body.split(b"\n") if line.startswith(b"data:")]
    return StreamFacts(
        status=answer.status,
        content_type=answer.headers.get("content-type", ""),
        num_events=len(events),
        is_complete=bool(events) and events[-1].strip() == b"data: [DONE]",
        arrivals_s=answer.arrivals_s,
        encoding=answer.headers.get("content-encoding", ""),
        said=reason_of(answer),
    )


def check_stream(model: str, facts: StreamFacts) -> Iterator[Finding]:
    """Yield whether tokens come one after another, or whether something in between keeps them back."""
    if facts.status != 200:
        yield warning("server.stream", f"{model}: {facts.status}: {facts.said}", "see server.completion")
        return
    if not facts.content_type.startswith("text/event-stream") or not facts.is_complete:
        yield problem(
            "server.stream",
            f"{model}: the stream is {facts.content_type or 'of no type'}, {facts.num_events} events, "
            f"{'whole' if facts.is_complete else 'cut off'}",
            "a proxy in between rewrites or ends it: let it pass text/event-stream, and raise its idle timeout",
        )
        return
    last_s = facts.arrivals_s[-1]
    if facts.num_events < MANY_EVENTS or last_s < LONG_S:
        yield note("server.stream", f"{model}: {facts.num_events} events in {last_s:.2f} s, too few to judge buffers")
    elif len(facts.arrivals_s) <= 2 or facts.encoding:
        yield problem(
            "server.stream",
            f"{model}: {facts.num_events} events came in {len(facts.arrivals_s)} pieces after {last_s:.1f} s"
            + (f", packed as {facts.encoding}" if facts.encoding else ""),
            "a proxy keeps the stream back. nginx: proxy_buffering off, and gzip off for it; others: the like",
        )
    else:
        first_s = facts.arrivals_s[0]
        yield ok(
            "server.stream", f"{model}: {facts.num_events} events, the first after {1e3 * first_s:.0f} ms, unbuffered"
        )


def check_metrics(answer: Answer) -> Iterator[Finding]:
    """Yield whether /metrics can be scraped, and which tier runs what."""
    if answer.status == 403:
        yield note(
            "server.metrics", f"this key may not read /metrics: {reason_of(answer)}", "a scraper needs its own key"
        )
        return
    if answer.status == 401:
        yield warning(
            "server.metrics",
            f"/metrics gives 401: {reason_of(answer)}",
            "give the scraper a key: python -m deployments.keys new --name NAME",
        )
        return
    lines = [line for line in answer.body.decode("utf-8", "replace").splitlines() if line and line[0] != "#"]
    if answer.status != 200 or not lines:
        yield problem(
            "server.metrics", f"/metrics gives {answer.status} and {len(lines)} values", "see the server's log"
        )
        return
    yield ok("server.metrics", f"/metrics: {len(lines)} values")
    slow = sorted({_label(line, "model") for line in lines if line.startswith("eagleray_op_tier") and _is_slow(line)})
    for model in slow:
        yield warning(
            "server.kernels",
            f"{model}: plain torch computes, not the kernels of this project",
            "run the doctor on the node (node.kernels, node.cuda), and `python -m engine.generate --explain`",
        )


def _is_slow(line: str) -> bool:
    return _label(line, "op") == "linear" and _label(line, "tier") == "torch"


def _label(line: str, name: str) -> str:
    return line.partition(f'{name}="')[2].partition('"')[0]


def reason_of(answer: Answer) -> str:
    """Return the message of an OpenAI error, else the beginning of the body."""
    try:
        return msgspec.json.decode(answer.body, type=_Refusal).error.message
    except msgspec.DecodeError:
        return answer.text()
