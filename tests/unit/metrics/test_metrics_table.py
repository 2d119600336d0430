"""Red when a metric has no bound, no help, nobody who sets or sees it, or another name than vLLM's dashboards want."""

import re
from pathlib import Path

import pytest

from deployments.metrics.row import Row
from deployments.metrics.table import ALIASES, LABELS, ROWS, aliases_of, label
from deployments.metrics.views.docs import uses_of

ROOT = Path(__file__).resolve().parents[3]
NAME = re.compile(r"(eagleray|gen_ai)_[a-z_]+[a-z]")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_says_all_that_is_to_be_known_of_it(row: Row):
    assert NAME.fullmatch(row.name)
    assert not row.name.endswith(("_total", "_sum", "_count", "_bucket"))
    assert row.help.endswith(".")
    assert (ROOT / row.set_by.split(" ")[0]).is_file()
    assert bool(row.buckets) is (row.kind == "histogram")
    assert list(row.buckets) == sorted(set(row.buckets))
    if row.unit == "seconds":
        assert row.name.endswith("_seconds")
    if row.unit == "ratio":
        assert row.name.endswith("_ratio")


def test_names_are_unique():
    names = [row.name for row in ROWS] + [alias.name for alias in ALIASES]
    assert len(names) == len(set(names))


def test_every_label_is_bounded_and_every_bound_is_of_a_label():
    used = {name for row in ROWS for name in row.exposed_labels}
    assert used == {one.name for one in LABELS}
    assert all(0 < label(name).max_values <= 1024 for name in used)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_metric_is_seen_on_a_dashboard_or_in_an_alert(row: Row):
    assert uses_of(row)


def test_what_autoscalers_and_gateways_read_of_vllm_is_there():
    names = {alias.as_row.exposed_name for alias in ALIASES}
    assert names >= {
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:time_to_first_token_seconds",
        "vllm:inter_token_latency_seconds",
        "vllm:request_queue_time_seconds",
        "vllm:request_prefill_time_seconds",
        "vllm:request_decode_time_seconds",
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        "vllm:prefix_cache_queries_total",
        "vllm:prefix_cache_hits_total",
        "vllm:num_preemptions_total",
        "vllm:request_success_total",
    }


def test_an_alias_renames_labels_and_nothing_else():
    for row in ROWS:
        for alias in aliases_of(row):
            assert alias.as_row.buckets == row.buckets
            assert len(alias.as_row.labels) == len(row.labels)
            assert "model" not in alias.as_row.labels
