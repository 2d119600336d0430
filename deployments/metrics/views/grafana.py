"""Dashboards as Grafana imports them."""

import json
from typing import Any

from deployments.metrics.group_rows import GROUPS, STATE
from deployments.metrics.views.panels import Dashboard, Panel, Section, Target

Json = dict[str, Any]
"""What becomes a file; nobody else reads it."""

_WIDTH = 24
_PER_LINE = 4
_HEIGHT = 8
_DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}


def dashboard_json(dashboard: Dashboard) -> str:
    """Return the file of one dashboard."""
    content = {
        "uid": f"eagleray-{dashboard.name}",
        "title": dashboard.title,
        "description": "Made by `python -m deployments.metrics`.",
        "tags": ["eagleray"],
        "timezone": "browser",
        "editable": True,
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "links": [{"type": "dashboards", "title": "eagleray", "tags": ["eagleray"], "asDropdown": True}],
        "templating": {"list": _variables()},
        "panels": _panels(dashboard),
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _variables() -> list[Json]:
    return [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
        _choice("model", f"label_values({GROUPS.name}, model)"),
        _choice("group", f'label_values({STATE.name}{{model=~"$model"}}, group)'),
    ]


def _choice(name: str, query: str) -> Json:
    return {
        "name": name,
        "type": "query",
        "datasource": _DATASOURCE,
        "query": query,
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _panels(dashboard: Dashboard) -> list[Json]:
    found: list[Json] = []
    top = 0
    for section in dashboard.sections:
        found.append(_heading(section, len(found) + 1, top))
        top += 1
        for number, panel in enumerate(section.panels):
            place = _place(number, min(len(section.panels), _PER_LINE), top)
            found.append(_panel(panel, len(found) + 1, place))
        top += _HEIGHT * -(-len(section.panels) // _PER_LINE)
    return found


def _place(number: int, per_line: int, top: int) -> Json:
    width = _WIDTH // per_line
    line, column = divmod(number, per_line)
    return {"x": column * width, "y": top + line * _HEIGHT, "w": width, "h": _HEIGHT}


def _heading(section: Section, number: int, top: int) -> Json:
    place = {"x": 0, "y": top, "w": _WIDTH, "h": 1}
    return {"id": number, "type": "row", "title": section.title, "collapsed": False, "gridPos": place, "panels": []}


def _panel(panel: Panel, number: int, place: Json) -> Json:
    custom: Json = {"fillOpacity": 10, "showPoints": "never"}
    if panel.is_stacked:
        custom = {"fillOpacity": 40, "showPoints": "never", "stacking": {"mode": "normal"}}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.note,
        "datasource": _DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": custom}, "overrides": []},
        "targets": [_target(target, index) for index, target in enumerate(panel.targets)],
    }


def _target(target: Target, index: int) -> Json:
    return {
        "refId": chr(ord("A") + index),
        "datasource": _DATASOURCE,
        "expr": target.query,
        "legendFormat": target.legend,
        "editorMode": "code",
        "range": True,
    }
