"""Finished spans, however they were gathered, as a tree that tests can ask."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
CLIENT_SPAN_ID = "00f067aa0ba902b7"


def traceparent(trace_id: str = TRACE_ID, is_sampled: bool = True) -> dict[str, str]:
    """The header of a client whose own span is CLIENT_SPAN_ID."""
    return {"traceparent": f"00-{trace_id}-{CLIENT_SPAN_ID}-{'01' if is_sampled else '00'}"}


class SpanSeen(NamedTuple):
    """What a collector knows of a span."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    began_ns: int
    ended_ns: int
    attributes: Mapping[str, Any]
    links: tuple[str, ...]
    is_error: bool


class SpanTree:
    """The spans of one trace."""

    def __init__(self, spans: Iterable[SpanSeen], trace_id: str = TRACE_ID) -> None:
        self.spans = [span for span in spans if span.trace_id == trace_id]

    def named(self, name: str) -> list[SpanSeen]:
        """Return the spans of that name, by when they began."""
        return sorted((span for span in self.spans if span.name == name), key=lambda span: span.began_ns)

    def only(self, name: str) -> SpanSeen:
        """Return the one span of that name."""
        (span,) = self.named(name)
        return span

    def parent(self, span: SpanSeen) -> SpanSeen:
        """Return the span around it; fails the test if it is not of this trace."""
        (parent,) = (other for other in self.spans if other.span_id == span.parent_id)
        return parent

    def ancestors(self, span: SpanSeen) -> list[str]:
        """Return the names of the spans around it, the nearest first."""
        by_id = {other.span_id: other for other in self.spans}
        names = []
        while span.parent_id in by_id:
            span = by_id[span.parent_id]
            names.append(span.name)
        return names

    def children(self, span: SpanSeen) -> list[SpanSeen]:
        """Return the spans right under it, by when they began."""
        found = (other for other in self.spans if other.parent_id == span.span_id)
        return sorted(found, key=lambda other: (other.began_ns, other.ended_ns))

    def check_nested(self, root: SpanSeen) -> None:
        """Fail the test if any span under `root` begins before its parent or ends after it."""
        for child in self.children(root):
            assert root.began_ns <= child.began_ns <= child.ended_ns <= root.ended_ns, (root, child)
            self.check_nested(child)
