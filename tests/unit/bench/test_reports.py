import json
import os
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from benchmarks.report import summary, write_report
from benchmarks.serve_process import Served
from benchmarks.token_path import Round, describe, mode_figures
from benchmarks.transformers_peer import Timed
from benchmarks.vs_transformers import figures, table

STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_summary_has_interpolated_percentiles_and_counts_nothing_as_nothing():
    assert summary([3.0, 1.0, 2.0]) == {"count": 3, "mean": 2.0, "p50": 2.0, "p90": 2.8, "p99": 2.98, "max": 3.0}
    assert summary([]) == {"count": 0}


def test_report_is_named_by_its_date_and_says_where_it_comes_from(tmp_path: Path):
    path = write_report("probe", STARTED, {"answer": 42}, tmp_path)
    report = json.loads(path.read_text())
    assert path.name == "2026-01-02-probe.json"
    assert report["answer"] == 42 and report["started_at"] == "2026-01-02T03:04:05+00:00"
    assert report["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert report["versions"]["eagleray"]


def test_row_compares_speed_and_answers_with_the_reference():
    ours = [Timed(2.0, 8, [0.1, 0.3], [[1, 2, 3, 4], [5, 6, 7, 8]])]
    reference = [Timed(4.0, 8, [0.2, 0.2], [[1, 2, 3, 4], [5, 6, 7, 9]])]
    row = figures("ours", "float32", 2, ours, reference)
    assert row["output_tokens_per_s"] == 4.0
    assert row["ratio_to_transformers_generate"] == 2.0
    assert row["answers_equal_to_transformers_generate"] == "1 of 2"
    assert row["ttft_s"]["p50"] == pytest.approx(0.2)
    assert "1 of 2" in table([row])


def test_cpu_time_of_a_process_without_a_role_counts_as_ray():
    seconds = Served("http://127.0.0.1:1", psutil.Process()).cpu_seconds()
    assert seconds["ray"] > 0


def test_ranks_are_left_out_of_the_token_path_and_idle_use_is_told_apart():
    rounds = [Round({"proxy": 0.1, "gateway": 0.2, "leader": 0.1, "rank": 9.0, "ray": 1.0}, 10.0, 10_000, {})]
    figures_ = mode_figures(rounds, {"gateway": 0.01, "leader": 0.01, "rank": 0.5})
    assert figures_["path_us_per_token"]["p50"] == 40.0
    assert figures_["path_us_per_token_above_idle"]["p50"] == 20.0
    assert "40 us per token, 20 above idle, at 1000 tok/s" in describe("default", figures_)
