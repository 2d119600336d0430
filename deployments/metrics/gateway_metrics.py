"""The metrics of one gateway copy: what fills them, and the page they make."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from cluster.routing.decisions import REASONS, Decisions
from deployments.groups.stream_counts import StreamCounts
from deployments.groups.unbroken import UnbrokenStreams
from deployments.metrics import gateway_rows as rows
from deployments.metrics.answers import AnswerMetrics
from deployments.metrics.config import MetricsConfig
from deployments.metrics.copies import AskCopies, CopyPage, ask_nobody, joined
from deployments.metrics.exposition import Family, Series
from deployments.metrics.group_families import Group, Rows, family, group_values
from deployments.metrics.request_record import RequestMetrics, RequestRecord
from deployments.metrics.row import Row
from deployments.metrics.store import Distributions
from deployments.metrics.table import aliases_of

OPERATIONS = ("chat", "text_completion")

_STREAM_VALUES: dict[Row, Callable[[StreamCounts], float]] = {
    rows.REQUESTS_HELD: lambda counts: counts.num_held,
    rows.REQUESTS_QUARANTINED: lambda counts: counts.num_quarantined,
    rows.REQUEST_RETRIES: lambda counts: counts.num_retries,
    rows.STREAM_RESUMES: lambda counts: counts.num_resumes,
    rows.STREAM_RESUME_TIME: lambda counts: counts.resume_s,
    rows.STREAMS_GIVEN_UP: lambda counts: counts.num_given_up,
}


class GatewayFacts(NamedTuple):
    """What is read of a gateway when Prometheus asks."""

    groups: Callable[[], Iterable[Group]]
    streams: UnbrokenStreams
    decisions: Decisions
    policy: str
    """Of its router."""
    models: Sequence[str]
    """That it is configured for."""


class GatewayMetrics:
    """Counts what this copy does; shows it together with what the other copies have. Lives on one event loop."""

    def __init__(
        self, config: MetricsConfig, facts: GatewayFacts, gateway: str, ask_copies: AskCopies = ask_nobody
    ) -> None:
        """`gateway` is this copy's id."""
        self.requests = RequestMetrics()
        self.answers = AnswerMetrics()
        self._config = config
        self._facts = facts
        self._gateway = gateway
        self._ask_copies = ask_copies
        for operation in OPERATIONS:
            self.requests.show_operation(operation)

    def request(self, operation: str, tenant: str = "") -> RequestRecord:
        """Return a context manager that records one request, however it ends."""
        return RequestRecord(self.requests, operation, tenant if self._config.tenants else "")

    async def render(self) -> bytes:
        """Return the metrics of all copies in Prometheus' text format."""
        return joined(self.own_page(), await self._ask_copies())

    def own_page(self) -> CopyPage:
        """Return what this copy knows."""
        groups = list(self._facts.groups())
        models = sorted({*self._facts.models, *(group.status.model for group in groups)})
        for model in models:
            self.requests.show_model(model, OPERATIONS)
        of_groups = self._families(group_values(groups, models), {})
        own = self._families(self._own_values(models), {"gateway": self._gateway})
        return CopyPage(self._gateway, own, of_groups, sum(group.load is not None for group in groups))

    def _own_values(self, models: Sequence[str]) -> Rows:
        values: Rows = {each.row: each.values for each in (*self.requests.all_numbers(), *self.answers.all_numbers())}
        values |= {each.row: _series(each) for each in self.requests.all_distributions()}
        return values | self._stream_values(models) | self._router_values()

    def _stream_values(self, models: Sequence[str]) -> Rows:
        streams = self._facts.streams
        counts = {model: StreamCounts() for model in models} | streams.counts
        values: Rows = {rows.REQUESTS_WAITING_FOR_GROUP: {(): streams.num_held}}
        for row, value in _STREAM_VALUES.items():
            values[row] = {(model,): value(of_model) for model, of_model in counts.items()}
        return values

    def _router_values(self) -> Rows:
        decisions, policy = self._facts.decisions, self._facts.policy
        return {
            rows.ROUTER_DECISIONS: {(policy, why): decisions.by_reason[why] for why in REASONS},
            rows.ROUTER_TOKENS: {
                ("all",): decisions.num_prompt_tokens,
                ("cached",): decisions.num_cached_tokens,
            },
        }

    def _families(self, values: Rows, constant: dict[str, str]) -> list[Family]:
        families: list[Family] = []
        for row, found in values.items():
            families.append(family(row, found, constant))
            if self._config.vllm_names:
                families += [family(alias.as_row, found, constant) for alias in aliases_of(row)]
        return families


def _series(distributions: Distributions) -> list[Series]:
    return [Series(labels, one.counts, one.total) for labels, one in distributions.series.items()]
