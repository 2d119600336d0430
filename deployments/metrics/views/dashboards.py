"""All dashboards, in the order in which an operator asks."""

from deployments.metrics.views.group_dashboards import GROUPS, RELIABILITY, ROUTER
from deployments.metrics.views.traffic_dashboards import MODEL_SLO, OVERVIEW

DASHBOARDS = (OVERVIEW, MODEL_SLO, GROUPS, ROUTER, RELIABILITY)
