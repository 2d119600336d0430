"""Prometheus' files: what to scrape, rules, alerts, and the tests of the alerts."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from deployments.metrics.views.alerts import ALERTS, RECORDINGS, Alert, Case

Yaml = dict[str, Any]
"""What becomes a file; nobody else reads it."""

SCRAPE = """\
# Scrapes a gateway. One target is enough, whatever the number of gateway copies and nodes: the copy that is asked asks
# the others. More than one target would count everything twice.
global:
  scrape_interval: 15s
  evaluation_interval: 15s

rule_files: [rules.yaml, alerts.yaml]

scrape_configs:
  - job_name: eagleray
    # A key with `scope: metrics` (python -m deployments.keys new --name prometheus). Without API keys, leave this out.
    authorization:
      credentials_file: /etc/prometheus/eagleray.key
    static_configs:
      - targets: [127.0.0.1:8000]
"""


def rules() -> str:
    """Return the recording rules."""
    recorded = [{"record": rule.name, "expr": rule.query} for rule in RECORDINGS]
    return _file({"groups": [{"name": "eagleray-recordings", "rules": recorded}]})


def alerts() -> str:
    """Return the alert rules."""
    return _file({"groups": [{"name": "eagleray-alerts", "rules": [_rule(alert) for alert in ALERTS]}]})


def alert_tests() -> str:
    """Return promtool's unit tests: each alert fires in one case, and does not in another."""
    tests = [test for alert in ALERTS for test in (_test(alert, alert.fires, True), _test(alert, alert.quiet, False))]
    return _file({"rule_files": ["alerts.yaml"], "evaluation_interval": "1m", "tests": tests})


def _rule(alert: Alert) -> Yaml:
    return {
        "alert": alert.name,
        "expr": alert.query,
        "for": alert.lasts,
        "labels": {"severity": alert.severity},
        "annotations": {"summary": alert.summary, "action": alert.action},
    }


def _test(alert: Alert, case: Case, fires: bool) -> Yaml:
    expected: Sequence[Yaml] = ()
    if fires:
        labels = {"severity": alert.severity, **alert.labels}
        notes = {"summary": _filled(alert.summary, alert.labels), "action": alert.action}
        expected = ({"exp_labels": labels, "exp_annotations": notes},)
    return {
        "name": f"{alert.name} {'fires' if fires else 'stays quiet'}",
        "interval": "1m",
        "input_series": [{"series": series, "values": values} for series, values in case.series.items()],
        "alert_rule_test": [{"eval_time": case.at, "alertname": alert.name, "exp_alerts": list(expected)}],
    }


def _filled(text: str, labels: Mapping[str, str]) -> str:
    for name, value in labels.items():
        text = text.replace("{{ $labels." + name + " }}", value)
    return text


def _file(content: Yaml) -> str:
    head = "# Made by `python -m deployments.metrics`; change deployments/metrics and run it again.\n"
    return head + yaml.safe_dump(content, sort_keys=False, width=110, allow_unicode=True)
