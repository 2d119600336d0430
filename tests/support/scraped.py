"""A gateway whose keys let one caller and one Prometheus in, and panels' queries as Grafana would send them."""

from deployments.http.api_keys import ApiKey, digest_of
from deployments.metrics.views.dashboards import DASHBOARDS

CALLER, SCRAPER = "sk-caller", "sk-scraper"
KEYS = (
    ApiKey(name="caller", sha256=digest_of(CALLER).hex()),
    ApiKey(name="prometheus", sha256=digest_of(SCRAPER).hex(), scope="metrics"),
)


def panel_queries(model: str, interval: str) -> dict[str, str]:
    """Return the queries of all panels for a model, by the panel's place and title."""
    return {
        f"{board.name}-{panel.title}-{number}".replace(" ", "_"): _filled_in(target.query, model, interval)
        for board in DASHBOARDS
        for panel in board.panels
        for number, target in enumerate(panel.targets)
    }


def _filled_in(query: str, model: str, interval: str) -> str:
    for name, value in (("$model", model), ("$group", ".*"), ("$__rate_interval", interval)):
        query = query.replace(name, value)
    return query
