"""Red when docs, dashboards or Prometheus' files are not what the table says, or a panel asks for what nobody sets."""

import json
from pathlib import Path

import pytest

from deployments.metrics.__main__ import files, main, stale
from deployments.metrics.table import ROWS
from deployments.metrics.views.alerts import ALERTS
from deployments.metrics.views.dashboards import DASHBOARDS
from deployments.metrics.views.docs import metrics_in

ROOT = Path(__file__).resolve().parents[3]
QUERIES = [target.query for board in DASHBOARDS for panel in board.panels for target in panel.targets]


def test_generated_files_are_up_to_date(capsys):
    assert stale(ROOT) == [], "run python -m deployments.metrics"
    assert main(["--check"]) == 0


def test_a_file_that_was_changed_by_hand_is_found(tmp_path):
    for path, text in files().items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "docs/metrics.md").write_text("changed")
    (tmp_path / "deploy/prometheus/rules.yaml").unlink()
    assert stale(tmp_path) == ["docs/metrics.md", "deploy/prometheus/rules.yaml"]


def test_no_other_file_is_in_the_folders_of_generated_ones():
    for folder in ("deploy/grafana", "deploy/prometheus"):
        found = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*") if path.is_file()}
        assert found == {path for path in files() if path.startswith(folder)}


@pytest.mark.parametrize("query", [*QUERIES, *(alert.query for alert in ALERTS)])
def test_a_query_reads_metrics_of_the_table(query):
    assert metrics_in(query)


def test_counters_are_read_as_rates_and_never_as_totals():
    counters = {row.exposed_name for row in ROWS if row.kind == "counter"}
    for query in QUERIES:
        for name in counters:
            before, found, _ = query.partition(name)
            assert not found or before.endswith(("rate(", "increase(")), query


def test_panels_have_ids_and_places_of_their_own():
    for path, text in files().items():
        if path.startswith("deploy/grafana"):
            panels = json.loads(text)["panels"]
            assert len({panel["id"] for panel in panels}) == len(panels)
            places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
            assert len(set(places)) == len(places)


def test_every_metric_and_alert_is_in_the_docs():
    text = files()["docs/metrics.md"]
    assert all(f"`{row.exposed_name}`" in text for row in ROWS)
    assert all(alert.name in text and alert.action for alert in ALERTS)
